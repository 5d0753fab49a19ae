//! What a valid configuration comes to mean: prices, aliases, names, secrets, warnings; and that no text is a crash.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use proptest::prelude::*;
use proptest::strategy::Strategy as _;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;
use tollkeeper_config::{
    BackendId, Config, ConfigErrors, Gpu, Limit, LoraAdapter, NoticeKind, Owner, PicoUsd, Pooling, PriceSource,
    RateLimits, ReasoningFormat, Scope, Speculate, StageRule, Strategy, ToolFormat, Usd, VelocityConfig, VelocityFloor,
    WebhookFormat, Window, parse,
};

const PROVIDERS: &str = r#"
[[local.models]]
name = "small"
path = "small.gguf"
[[local.models]]
name = "large"
path = "/models/large.gguf"
price = { input = "0.01", output = "0.04" }
max_output = 512
[[providers]]
name = "openai"
kind = "openai"
api_key = "env:OPENAI_API_KEY"
[[providers]]
name = "fast"
kind = "groq"
api_key = "env:GROQ_API_KEY"
[[providers]]
name = "mine"
kind = "ollama"
price = "free"
[[agents]]
name = "scout"
key = "env:SCOUT_KEY"
"#;

fn env(name: &str) -> Option<String> {
    Some(match name {
        "OPENAI_API_KEY" | "SCOUT_KEY" => format!(" value-of-{name}\n"),
        "EMPTY" => " ".to_owned(),
        _ => return None,
    })
}

#[test]
fn the_ledger_is_kept_for_ever_or_for_days() {
    let keep = |text: &str| try_read(&format!("[store]\nkeep = \"{text}\"")).map(|config| config.store.keep);
    let days = |days: u64| Some(std::time::Duration::from_secs(days * 86_400));
    assert_eq!(try_read("").unwrap().store.keep, None);
    assert_eq!((keep("forever").unwrap(), keep("400d").unwrap()), (None, days(400)));
    for wrong in ["33d", "400", "d", "-40d", "400h", "99999999999999999999d"] {
        assert!(keep(wrong).unwrap_err().to_string().contains("days such as \"400d\""), "{wrong}");
    }
}

fn try_read(text: &str) -> Result<Config, ConfigErrors> {
    parse(text, Path::new("/etc/tollkeeper/tollkeeper.toml"), &env)
}

/// The configuration of `PROVIDERS` and `more`.
fn read(more: &str) -> Config {
    try_read(&format!("{PROVIDERS}{more}")).unwrap_or_else(|errors| panic!("{errors}"))
}

fn targets(config: &Config, model: &str) -> Vec<String> {
    let resolved = config.resolve(model).unwrap();
    resolved.targets.iter().map(|(id, tier)| format!("{id}@{tier}")).collect()
}

fn remote(provider: &str, model: &str) -> BackendId {
    BackendId::Remote { provider: provider.into(), model: model.into() }
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = try_read("").unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:4000");
    assert_eq!((config.server.body_limit, config.server.budget_status), (32 << 20, 402));
    assert_eq!(config.store.path, Path::new("/etc/tollkeeper/data/tollkeeper.db"));
    assert_eq!(config.local.vram, None);
    assert_eq!(targets(&config, "auto"), Vec::<String>::new());
    assert!(config.warnings.iter().any(|warning| warning.contains("there is no agent")));
    assert!(config.warnings.contains(&"the alias `auto` has no target: requests to it will be refused".to_owned()));
}

#[test]
fn the_card_is_the_one_that_is_said_else_the_first_that_cuda_sees() {
    let gpu = |local: &str, visible: Option<&str>| {
        let env = |name: &str| (name == "CUDA_VISIBLE_DEVICES").then(|| visible.map(str::to_owned)).flatten();
        parse(&format!("[local]\n{local}"), Path::new("t.toml"), &env).unwrap().local.gpu
    };
    let uuid = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6";
    assert_eq!(gpu("", None), Gpu::Index(0));
    assert_eq!(gpu("gpu = 1", Some("3")), Gpu::Index(1));
    assert_eq!(gpu(&format!("gpu = {uuid:?}"), None), Gpu::Uuid(uuid.to_owned()));
    assert_eq!(gpu("", Some("2, 0")), Gpu::Index(2));
    assert_eq!(gpu("", Some(uuid)), Gpu::Uuid(uuid.to_owned()));
    assert_eq!((gpu("", Some("")), gpu("", Some("-1"))), (Gpu::Index(0), Gpu::Index(0)));
    for bad in ["gpu = \"0\"", "gpu = 64", "gpu = \"GPU-a b\"", "gpu = true"] {
        try_read(&format!("[local]\n{bad}")).unwrap_err();
    }
}

#[test]
fn an_agents_velocity_is_laid_over_the_files() {
    let text = format!(
        "{PROVIDERS}velocity = {{ throttle = 12, floor_usd = \"1.5\", pause_cool_down = \"by-hand\" }}\n[[agents]]\nname = \"other\"\n\
         key = \"k\"\n[velocity]\ntrip = 3.5\nlocal = \"off\"\ndrift = \"off\"\nloop_repeats = 20\n"
    );
    let config = try_read(&text).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(try_read("").unwrap().velocity, VelocityConfig::default());
    let [scout, other] = ["scout", "other"].map(|name| &config.agents[name].velocity);
    assert_eq!(other, &config.velocity);
    assert_eq!((other.notify.unwrap().at, other.local, other.drift, other.loop_repeats), (3.5, None, None, Some(20)));
    let expected = VelocityConfig {
        throttle: scout.throttle.map(|rule| StageRule { at: 12.0, ..rule }),
        pause: scout.pause.map(|rule| StageRule { cool_down: None, ..rule }),
        floor: VelocityFloor { usd: Usd(1_500_000_000), ..other.floor },
        ..other.clone()
    };
    assert_eq!((scout, scout.throttle.unwrap().at), (&expected, 12.0));
}

#[test]
fn aliases_exist_out_of_the_box() {
    let config = read("");
    assert_eq!(targets(&config, "local/fast"), ["small@0"]);
    assert_eq!(targets(&config, "local/quality"), ["large@0"]);
    assert_eq!(targets(&config, "cloud/fast"), ["openai/gpt-6-luna@0", "fast/openai/gpt-oss-20b@1"]);
    let auto = config.resolve("auto").unwrap();
    assert_eq!(auto.strategy, Strategy::Pyramid);
    assert_eq!(
        targets(&config, "auto")[..4],
        ["small@0", "large@1", "openai/gpt-6-luna@2", "fast/openai/gpt-oss-20b@2"]
    );
}

#[test]
fn aliases_are_flattened_and_the_place_is_the_tier() {
    let config = read(
        r#"
[[aliases]]
name = "inner"
strategy = "cheapest"
targets = ["openai/gpt-4o-mini", "small"]
[[aliases]]
name = "outer/one"
targets = ["large", "inner", "small", "mine/qwen3:8b", "inner"]
[[aliases]]
name = "local/fast"
targets = ["large"]
"#,
    );
    let outer = config.resolve("outer/one").unwrap();
    assert_eq!(outer.alias.unwrap().name, "outer/one");
    assert_eq!(outer.strategy, Strategy::Ordered);
    assert_eq!(targets(&config, "outer/one"), ["large@0", "openai/gpt-4o-mini@1", "small@1", "mine/qwen3:8b@3"]);
    assert_eq!(config.resolve("inner").unwrap().strategy, Strategy::Cheapest);
    assert_eq!(targets(&config, "local/fast"), ["large@0"], "written down, it replaces the built-in one");
    assert_eq!(targets(&config, "auto")[0], "large@0");
}

#[test]
fn a_name_is_an_alias_a_local_model_or_a_priced_model() {
    let config = read("");
    assert_eq!(targets(&config, "small"), ["small@0"]);
    assert_eq!(targets(&config, "fast/openai/gpt-oss-20b"), ["fast/openai/gpt-oss-20b@0"]);
    assert_eq!(targets(&config, "mine/whatever/it:has"), ["mine/whatever/it:has@0"]);
    let unknown = [
        ("smal", "the model `smal` does not exist; did you mean `small`?"),
        ("cloud/fats", "the model `cloud/fats` does not exist; did you mean `cloud/fast`?"),
        ("openai/gpt-4o-mimi", "the model `openai/gpt-4o-mimi` does not exist; did you mean `openai/gpt-4o-mini`?"),
        (
            "openai/davinci-003",
            "the model `openai/davinci-003` does not exist; its provider is configured, but it has no known price: ask \
             the operator to add one",
        ),
        ("something-else", "the model `something-else` does not exist; GET /v1/models lists those that do"),
    ];
    for (model, expected) in unknown {
        assert_eq!(config.resolve(model).unwrap_err().to_string(), expected);
    }
    for model in ["", "/", "openai/", "/gpt-4o", "mine/"] {
        assert!(config.resolve(model).is_err(), "{model}");
    }
}

#[test]
fn two_models_share_a_file_with_and_without_an_adapter() {
    let config = read(
        r#"
[[local.models]]
name = "tuned"
path = "small.gguf"
pooling = "last"
tool_format = "qwen3-coder"
reasoning_format = "none"
lora = [{ path = "mine.gguf", scale = -0.5 }]
[[local.models]]
name = "tuned-whole"
path = "small.gguf"
lora = [{ path = "/a/mine.gguf" }, ]
[[local.models]]
name = "seeing"
path = "small.gguf"
mmproj = "mmproj-small.gguf"
"#,
    );
    let [small, tuned, whole] = ["small", "tuned", "tuned-whole"].map(|name| &*config.local.models[name]);
    assert_eq!((&small.path, &small.lora, small.pooling), (&tuned.path, &vec![], None));
    let folder = small.path.parent().unwrap();
    assert_eq!(tuned.lora, [LoraAdapter { path: folder.join("mine.gguf"), scale: -0.5 }]);
    assert_eq!(tuned.pooling, Some(Pooling::Last));
    let seeing = &config.local.models["seeing"];
    assert_eq!(seeing.mmproj, Some(folder.join("mmproj-small.gguf")));
    assert!(seeing.abilities.vision && !tuned.abilities.vision, "what sees follows from the projector");
    assert_eq!((tuned.tool_format, tuned.reasoning_format), (ToolFormat::Qwen3Coder, ReasoningFormat::None));
    assert_eq!((small.tool_format, small.reasoning_format), (ToolFormat::Auto, ReasoningFormat::Auto));
    assert_eq!(whole.lora, [LoraAdapter { path: "/a/mine.gguf".into(), scale: 1.0 }]);
}

#[test]
fn a_draft_is_a_file_beside_its_model() {
    let lines =
        "\n[[local.models]]\nname = \"big\"\npath = \"big.gguf\"\nspeculate = \"draft\"\ndraft = \"little.gguf\"\n";
    let config = read(lines);
    let [small, big] = ["small", "big"].map(|name| &*config.local.models[name]);
    let little = big.path.parent().unwrap().join("little.gguf");
    assert_eq!((&small.speculate, &big.speculate), (&Speculate::Off, &Speculate::Draft(little)));
}

#[test]
fn prices_come_from_the_file_the_catalogue_or_the_provider() {
    let config = read(
        r#"
[prices."openai/gpt-4o-mini"]
input = "0.10"
output = "0.50"
above = [{ input_tokens = 9, input = "3", cached_input = "1", output = "4" }, { input_tokens = 5, input = "1", output = "2" }]
[prices."openai/gpt-4o"]
context = 1000
abilities = ["chat"]
[prices]
"fast/new" = "free"
"mine/dear" = { input = "1", output = "2" }
[prices."openai/new-embed"]
input = "0.02"
abilities = ["embeddings"]
"#,
    );
    let facts = |id| config.facts(&id).unwrap();
    let mini = facts(remote("openai", "gpt-4o-mini"));
    assert_eq!(mini.price.source, PriceSource::File);
    assert_eq!(
        mini.price.base.cached_input,
        PicoUsd(100_000),
        "without a price of its own a cached token costs as any"
    );
    assert_eq!(mini.context, Some(128_000), "what the file does not say is the catalogue's");
    let tiers: Vec<_> = mini.price.above.iter().map(|(tokens, rates)| (*tokens, rates.cached_input.0)).collect();
    assert_eq!(tiers, [(5, 1_000_000), (9, 1_000_000)]);

    let edited = facts(remote("openai", "gpt-4o"));
    assert_eq!((edited.price.source, edited.context), (PriceSource::Catalog, Some(1000)));
    assert!(edited.abilities.chat && !edited.abilities.tools);

    assert_eq!(facts(remote("fast", "new")).price.source, PriceSource::Free);
    assert_eq!(facts(remote("mine", "anything")).price.source, PriceSource::Free);
    assert_eq!(facts(remote("mine", "dear")).price.base.output, PicoUsd(2_000_000));
    assert_eq!(facts(remote("openai", "new-embed")).price.base.output, PicoUsd(0));
    assert_eq!(config.facts(&remote("openai", "new")), None, "an unknown price is not zero");
    assert_eq!(config.facts(&remote("groq", "openai/gpt-oss-20b")), None, "the provider is called `fast`");

    let large = facts(BackendId::Local("large".into()));
    assert_eq!((large.price.base.input, large.context, large.max_output), (PicoUsd(10_000), Some(4096), Some(512)));
    assert_eq!(facts(BackendId::Local("small".into())).price.source, PriceSource::Free);
}

#[test]
fn secrets_are_fetched_trimmed_and_missing_ones_disable_a_provider() {
    let config = read("");
    assert_eq!(config.agents["scout"].key.as_ref().map(tollkeeper_config::Secret::expose), Some("value-of-SCOUT_KEY"));
    assert_eq!(config.providers["openai"].api_key.as_ref().unwrap().expose(), "value-of-OPENAI_API_KEY");
    assert_eq!(config.providers["openai"].disabled, None);
    assert_eq!(config.providers["fast"].api_key, None);
    assert_eq!(
        config.providers["fast"].disabled.as_deref(),
        Some("the environment variable GROQ_API_KEY is not set"),
        "but the file loads"
    );
    assert_eq!(config.providers["mine"].disabled, None, "it needs no key");
    let empty = read("[[providers]]\nname = \"x\"\nkind = \"xai\"\napi_key = \"env:EMPTY\"");
    assert_eq!(empty.providers["x"].disabled.as_deref(), Some("the environment variable EMPTY is empty"));
    let literal = read("[[agents]]\nname = \"open\"\nkey = \"written-down\"");
    assert!(literal.warnings.iter().any(|w| w.starts_with("the key of the agent `open` is written in the file")));
    assert!(!format!("{literal:?}").contains("written-down"));
}

#[test]
fn agents_have_budgets_and_models() {
    let config = read(
        r#"
[[agents]]
name = "coder"
key = "another-key"
models = ["local/*", "cloud/fsat", "small"]
budgets = [{ window = "day", limit_usd = "5.00" }, { window = "total", limit_usd = "0.000000001" }]
"#,
    );
    let coder = Owner::new(Scope::Agent, "coder");
    let own = config.budgets.iter().filter(|budget| budget.owner == coder);
    let budgets: Vec<_> = own.map(|budget| (budget.window, budget.limit)).collect();
    assert_eq!(budgets, [(Window::Day, Limit::Usd(Usd(5_000_000_000))), (Window::Total, Limit::Usd(Usd(1)))]);
    assert_eq!(config.agents["scout"].models, ["*"]);
    let expected = "the agent `coder` may name a model that is not there: the model `cloud/fsat` does not exist; did you \
                    mean `cloud/fast`?";
    assert_eq!(config.warnings.iter().filter(|warning| warning.contains("may name")).collect::<Vec<_>>(), [expected]);
}

#[test]
fn rates_limit_what_they_name_and_nothing_else() {
    let config = read(
        r#"
[[agents]]
name = "coder"
key = "another-key"
requests_per_minute = 60
tokens_per_minute = 90_000
parallel = 4
queue = 0
[[aliases]]
name = "fast"
targets = ["small"]
parallel = 8
"#,
    );
    let limit = NonZeroU32::new;
    let coder =
        RateLimits { requests_per_minute: limit(60), tokens_per_minute: limit(90_000), parallel: limit(4), queue: 0 };
    assert_eq!(config.agents["coder"].rates, coder);
    assert_eq!(config.aliases["fast"].rates, RateLimits { parallel: limit(8), ..RateLimits::default() });
    assert_eq!(config.aliases["fast"].rates.queue, 64);
    assert_eq!((config.agents["scout"].rates, config.aliases["auto"].rates), <_>::default());
}

#[test]
fn webhooks_are_told_of_everything_unless_they_say_otherwise() {
    let text = r#"
        [store]
        path = "/var/lib/money.db"
        [[webhooks]]
        name = "chat"
        url = "env:SCOUT_KEY"
    "#;
    let errors = try_read(text).unwrap_err().to_string();
    assert!(errors.contains("the URL of the webhook `chat` must be like"), "{errors}");
    assert!(!errors.contains("value-of"), "{errors}");

    let text = text.replace("env:SCOUT_KEY", "https://chat.example/hidden");
    let config = try_read(&text).unwrap();
    let chat = &config.notify.webhooks[0];
    assert_eq!(chat.events, NoticeKind::all().collect::<Vec<_>>());
    assert_eq!(
        (chat.format, chat.retries, chat.repeat_after),
        (WebhookFormat::Generic, 8, Some(Duration::from_secs(600)))
    );
    assert_eq!(config.notify.dead_letter, Path::new("/var/lib/notices.jsonl"));
    assert!(!format!("{config:?}").contains("hidden"));
    let warning = "the webhook `chat` has no `secret`: its receiver cannot tell notices from forged ones";
    assert!(config.warnings.contains(&warning.to_owned()), "{:?}", config.warnings);

    let more = r#"
        secret = "written in the file"
        format = "slack"
        events = ["paused", "resumed"]
        repeat_after = "off"
        quiet_hours = { from = "22:00", to = "07:00", time_zone = "Europe/Berlin" }
        [notify]
        dead_letter = "dead.jsonl"
    "#;
    let config = try_read(&format!("{text}{more}")).unwrap();
    let chat = &config.notify.webhooks[0];
    assert_eq!(chat.secret.as_ref().unwrap().expose(), "written in the file");
    assert_eq!((chat.format, chat.repeat_after), (WebhookFormat::Slack, None));
    assert_eq!(chat.events, [NoticeKind::Paused, NoticeKind::Resumed]);
    let until = chat.quiet_hours.as_ref().unwrap().quiet_until("2026-11-21T22:00:00Z".parse().unwrap());
    assert_eq!(until, Some("2026-11-22T06:00:00Z".parse().unwrap()));
    assert_eq!(config.notify.dead_letter, Path::new("/etc/tollkeeper/dead.jsonl"));
    let warned =
        config.warnings.iter().any(|warning| warning.starts_with("the secret of the webhook `chat` is written"));
    assert!(warned, "{:?}", config.warnings);
}

#[test]
fn aliases_nested_too_deep_are_refused_not_followed() {
    let chain: String =
        (0..5000).map(|n| format!("[[aliases]]\nname = \"a{n:04}\"\ntargets = [\"a{:04}\"]\n", n + 1)).collect();
    let errors = try_read(&chain).unwrap_err().to_string();
    assert!(errors.contains("aliases are nested more than 16 deep"), "{errors}");
}

/// Bits of configurations, good and bad, to be put together at random.
fn pieces() -> impl proptest::strategy::Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "[server]",
        "[local]",
        "[[local.models]]",
        "[[providers]]",
        "[[aliases]]",
        "[[agents]]",
        "[prices.\"openai/x\"]",
        "[prices]",
        "name = \"openai\"",
        "name = \"a/b\"",
        "name = \"é\"",
        "kind = \"openai\"",
        "kind = \"ollama\"",
        "key = \"k\"",
        "path = \"m\"",
        "price = \"free\"",
        "price = { input = \"1\", output = \"2\" }",
        "targets = [\"auto\", \"a/b\"]",
        "targets = [\"openai/gpt-4o\"]",
        "input = \"1\"",
        "output = \"2\"",
        "above = [{ input_tokens = 1 }]",
        "budgets = [{}]",
        "budgets = [{ window = \"day\", limit_usd = \"1\" }]",
        "= 1",
        "[",
        "\"openai/y\" = \"free\"",
        "context = -1",
        "context = 99999999999999999999",
        "name = 1979-05-27",
        "models = [1, [2]]",
        "[[webhooks]]",
        "url = \"http://h\"",
        "events = [\"denied\", 1]",
        "quiet_hours = { from = \"22:00\", to = \"22:00\" }",
        "x.y.z = 1",
        "\"\" = 0",
        "'''",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.join("\n"))
}

proptest! {
    #[test]
    fn no_text_is_a_crash(text in ".*") {
        let _ = try_read(&text);
    }

    #[test]
    fn every_problem_has_a_place_in_the_text(text in pieces()) {
        if let Err(errors) = try_read(&text) {
            let lines = text.lines().count() + 1;
            prop_assert!(!errors.problems.is_empty());
            for problem in errors.problems {
                prop_assert!((1..=lines).contains(&problem.line) && problem.column >= 1, "{problem} of {lines} lines");
            }
        }
    }

    #[test]
    fn no_name_is_a_crash(model in ".*") {
        let _ = read("").resolve(&model);
    }
}

#[test]
fn a_listener_for_the_operator_needs_the_operators_key_and_an_address_of_its_own() {
    let errors = |server: &str| try_read(&format!("[server]\n{server}")).unwrap_err().to_string();
    assert!(errors("admin_listen = \"127.0.0.1:4001\"").contains("needs `admin_key`"));
    let same = errors("listen = \"127.0.0.1:4001\"\nadmin_listen = \"127.0.0.1:4001\"\nadmin_key = \"k\"");
    assert!(same.contains("is the address of `listen`"), "{same}");
    let good = try_read("[server]\nadmin_listen = \"127.0.0.1:4001\"\nadmin_key = \"k\"").unwrap();
    assert_eq!(good.server.admin_listen, Some(([127, 0, 0, 1], 4001).into()));
}

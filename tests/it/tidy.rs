//! The repository's own rules, run as tests: directions between crates, who may touch what, sizes, names, documented metrics.

mod source;

use cargo_metadata::DependencyKind;
use source::{Workspace, files};
use std::collections::BTreeSet;
use std::fs;

/// Which crates of ours a crate may depend on. A crate that is not in this table breaks the rule.
const EDGES: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("config", &["protocol"]),
    ("router", &["config", "protocol"]),
    ("policies", &["config", "protocol"]),
    ("inference", &["config", "protocol"]),
    ("gateway", &["router", "policies", "inference", "config", "protocol"]),
    ("models", &[]),
    ("servers", &[]),
    ("tests", &["gateway", "router", "policies", "inference", "config", "protocol", "models", "servers"]),
    ("benches", &["tests", "gateway", "router", "policies", "inference", "config", "protocol", "models"]),
];

/// Crates that the tests of any other may use: they make model files, and start real servers.
const FOR_TESTS: &[&str] = &["models", "servers"];

/// Which foreign crates a crate must not depend on, and why.
const FOREIGN: &[(&str, &[&str], &str)] = &[
    (
        "protocol",
        &["tokio", "hyper", "http", "http-body", "tower", "rusqlite", "sqlx", "rand", "jiff"],
        "protocol is pure",
    ),
    (
        "router",
        &["tokio", "hyper", "http", "tower", "rusqlite", "sqlx", "rand", "jiff"],
        "router has no I/O, clock or randomness",
    ),
    (
        "policies",
        &["http", "hyper", "http-body", "http-body-util", "hyper-util", "tower", "axum"],
        "policies knows no HTTP",
    ),
    ("config", &["http", "hyper", "tower", "rusqlite", "sqlx"], "config reads files and the environment only"),
];

/// Which words may stand only in these files (or folders, with a closing slash), and why.
const TOUCHES: &[(&[&str], &[&str], &str)] = &[
    (&["rusqlite"], &["policies/src/store/sqlite.rs", "policies/src/store/sqlite/"], "one store touches SQLite"),
    (&["sqlx"], &["policies/src/store/postgres.rs", "policies/src/store/postgres/"], "one store touches PostgreSQL"),
    (&["redis"], &["policies/src/store/redis.rs", "servers/"], "one file touches Redis; the tests start a server"),
    (
        &["llama_cpp_2", "llama_cpp_sys_2"],
        &["inference/src/local/llama_cpp.rs", "inference/src/local/llama_cpp/"],
        "one engine touches llama.cpp",
    ),
    (&["llguidance"], &["inference/src/local/guide.rs"], "one file touches the grammar engine"),
    (
        &["candle_core", "candle_nn", "candle_transformers"],
        &["inference/src/local/candle.rs", "inference/src/local/candle/", "models/"],
        "one engine touches candle; the trainer is made of it",
    ),
    (
        &["var", "var_os", "vars", "vars_os"],
        &["config/", "tests/src/process.rs", "benches/"],
        "only config reads the environment of the gateway; the harness and the benches find the binary by it",
    ),
];

/// Files outside `gateway/src/error.rs` that may name status codes, and why.
const STATUS_CODES: &[(&str, &str)] = &[
    ("inference/src/remote/", "reads the status of a provider's answer"),
    ("tests/", "asserts them"),
    ("benches/", "counts them"),
];

const MOST_LINES: usize = 600;
const MOST_FUNCTION_LINES: usize = 120;

fn report(rule: &str, breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

#[test]
fn arrows_between_crates_point_down() {
    let workspace = Workspace::read();
    let mut breaches = Vec::new();
    for package in &workspace.metadata.packages {
        let folder = package.manifest_path.parent().unwrap().file_name().unwrap();
        if package.name.as_str() != format!("tollkeeper-{folder}") {
            breaches.push(format!("{folder}/ holds the crate {}: folder name = crate name", package.name));
        }
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == folder) else {
            breaches.push(format!("{folder} is not in the table of crates"));
            continue;
        };
        let forbidden = FOREIGN.iter().find(|(name, ..)| *name == folder);
        for dependency in &package.dependencies {
            let in_tests = dependency.kind == DependencyKind::Development;
            let may = |ours| allowed.contains(&ours) || in_tests && FOR_TESTS.contains(&ours);
            match (dependency.name.strip_prefix("tollkeeper-"), forbidden) {
                (Some(ours), _) if !may(ours) => breaches.push(format!("{folder} must not depend on {ours}")),
                (None, Some((_, names, why)))
                    if dependency.kind == DependencyKind::Normal && names.contains(&dependency.name.as_str()) =>
                {
                    breaches.push(format!("{folder} must not depend on {}: {why}", dependency.name));
                }
                _ => {}
            }
        }
    }
    report("arrows point down only", breaches);
}

#[test]
fn every_crate_takes_lints_and_versions_from_the_workspace() {
    let workspace = Workspace::read();
    let mut breaches = Vec::new();
    for package in &workspace.metadata.packages {
        let manifest = fs::read_to_string(&package.manifest_path).unwrap();
        if !manifest.contains("[lints]\nworkspace = true") {
            breaches.push(format!("{} does not take the workspace's lints", package.name));
        }
        let own = manifest
            .lines()
            .filter(|line| line.contains(" = \"") && line.contains("version = \"") || line.contains("path = \"../"));
        breaches.extend(own.map(|line| format!("{} gives a version or path of its own: {line}", package.name)));
    }
    report("one place for lints and versions", breaches);
}

#[test]
fn only_one_file_touches_each_engine_and_store() {
    let workspace = Workspace::read();
    let mut breaches = Vec::new();
    for source in &workspace.sources {
        for (words, allowed, why) in TOUCHES {
            let may =
                allowed.iter().any(|path| source.path == *path || path.ends_with('/') && source.path.starts_with(path));
            if let (false, Some((word, line))) = (may, source.names(words)) {
                // `var` and the like count after `env` only, and `redis` not where it is our own module.
                let counts = match word {
                    word if word.starts_with("var") => reads_environment(source, word),
                    "redis" => !only_our_module(source, word),
                    _ => true,
                };
                if counts {
                    breaches.push(format!("{}:{line} names `{word}`: {why}", source.path));
                }
            }
        }
    }
    report("foreign engines and stores stay behind one file", breaches);
}

/// Whether every mention of the word is the declaration of a module, or a path through `store`.
fn only_our_module(source: &source::Source, word: &str) -> bool {
    let mut before = "";
    source.tokens.iter().all(|(token, _)| {
        let ours = token != word || ["mod", "store"].contains(&before);
        before = token;
        ours
    })
}

fn reads_environment(source: &source::Source, word: &str) -> bool {
    source.tokens.windows(2).any(|pair| pair[0].0 == "env" && pair[1].0 == word)
}

#[test]
fn router_is_pure_and_inference_knows_no_money() {
    let workspace = Workspace::read();
    let mut breaches = Vec::new();
    let impure =
        ["Instant", "SystemTime", "fs", "net", "tokio", "rand", "jiff", "thread", "File", "env", "Mutex", "AtomicU64"];
    for source in workspace.under("router/src/") {
        if let Some((word, line)) = source.names(&impure) {
            breaches.push(format!("{}:{line} names `{word}`: `now` and `seed` are arguments", source.path));
        }
    }
    for source in workspace.under("inference/src/") {
        if let Some((word, line)) =
            source.names(&["Price", "Rates", "Usd", "PicoUsd", "AgentConfig", "BudgetConfig", "agents"])
        {
            breaches
                .push(format!("{}:{line} names `{word}`: inference knows no prices, agents or budgets", source.path));
        }
    }
    report("router decides by its arguments, inference does not count money", breaches);
}

#[test]
fn status_codes_are_named_in_one_file() {
    let workspace = Workspace::read();
    let mut breaches = Vec::new();
    for source in &workspace.sources {
        let may =
            source.path == "gateway/src/error.rs" || STATUS_CODES.iter().any(|(path, _)| source.path.starts_with(path));
        if let (false, Some((_, line))) = (may, source.names(&["StatusCode"])) {
            breaches.push(format!("{}:{line} names a status code: give gateway/src/error.rs a variant", source.path));
        }
    }
    report("causes become status codes in gateway/src/error.rs", breaches);
}

#[test]
fn files_are_short_named_well_and_say_what_they_are() {
    let workspace = Workspace::read();
    let mut breaches = Vec::new();
    for source in &workspace.sources {
        let path = &source.path;
        if !source.text.starts_with("//!") {
            breaches.push(format!("{path} does not begin with a `//!` sentence"));
        }
        if source.lines() > MOST_LINES {
            breaches
                .push(format!("{path} has {} lines without its unit tests, more than {MOST_LINES}", source.lines()));
        }
        // A table of cases may be long.
        let is_test = path.starts_with("tests/it/") || path.contains("/tests/");
        for (name, line, length) in
            source.functions.iter().filter(|(.., length)| !is_test && *length > MOST_FUNCTION_LINES)
        {
            breaches.push(format!("{path}:{line} `{name}` has {length} lines, more than {MOST_FUNCTION_LINES}"));
        }
        let vague = ["util", "utils", "common", "helper", "helpers", "misc"];
        if path.trim_end_matches(".rs").split('/').any(|part| vague.contains(&part)) {
            breaches.push(format!("{path} has a name that does not say what is in it"));
        }
    }
    report("files a newcomer can read", breaches);
}

#[test]
fn tests_wait_for_conditions_and_do_not_sleep() {
    let workspace = Workspace::read();
    let sleeps = workspace.under("tests/").filter(|source| source.path != "tests/src/wait.rs");
    let breaches = sleeps
        .filter_map(|source| source.names(&["sleep"]).map(|(_, line)| format!("{}:{line} sleeps", source.path)))
        .collect();
    report("tests wait on real state through wait.rs", breaches);
}

#[test]
fn nothing_is_left_to_do() {
    let workspace = Workspace::read();
    // Put together here, so that this file does not hold them.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["X", "XX"]].map(|[a, b]| format!("{a}{b}"));
    let mut breaches = Vec::new();
    for path in files(&workspace.root, &["rs", "toml", "py", "sh", "md", "yml", "yaml"]) {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let words = || line.split(|c: char| !c.is_alphanumeric());
            if words().any(|word| marks.iter().any(|mark| word == mark)) {
                breaches.push(format!(
                    "{}:{} {}",
                    path.strip_prefix(&workspace.root).unwrap().display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    report("finish it, or write down in the open that it is missing", breaches);
}

#[test]
fn the_changelog_has_an_unreleased_part() {
    let changelog = Workspace::read().text("CHANGELOG.md");
    assert!(
        changelog.lines().any(|line| line.starts_with("## ") && line.contains("Unreleased")),
        "CHANGELOG.md has no `## Unreleased`"
    );
}

/// Metric names among the words of a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let known = |word: &&str| {
        ["tollkeeper_", "gen_ai_", "vllm:"].iter().any(|prefix| word.starts_with(prefix) && word.len() > prefix.len())
    };
    text.split(|c: char| !is_part(c))
        .map(|word| word.trim_end_matches(['_', ':']))
        .filter(known)
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_metric_is_documented_and_dashboards_name_only_metrics_that_exist() {
    let workspace = Workspace::read();
    let code = workspace
        .sources
        .iter()
        .filter(|source| source.path.ends_with("/metrics.rs") || source.path.contains("/src/metrics/"))
        .filter(|source| !source.path.starts_with("tests/"));
    let literals = |source: &source::Source| {
        let texts: Vec<&str> =
            source.tokens.iter().map(|(token, _)| token.as_str()).filter(|token| token.starts_with('"')).collect();
        metrics_in(&texts.join(" "))
    };
    let exist: BTreeSet<String> = code.flat_map(literals).collect();
    assert!(exist.len() >= 15, "found only these metrics in metrics.rs: {exist:?}");

    let documented = metrics_in(&workspace.text("docs/metrics.md"));
    let base = |name: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    let mut breaches: Vec<String> =
        exist.difference(&documented).map(|name| format!("{name} is not in docs/metrics.md")).collect();
    let exists = |name: &String| exist.contains(name) || exist.contains(&base(name));
    breaches.extend(
        documented
            .iter()
            .filter(|name| !exists(name))
            .map(|name| format!("docs/metrics.md names {name}, which does not exist")),
    );
    for path in files(&workspace.root.join("dashboards"), &["json", "yml", "yaml"]) {
        let used = metrics_in(&fs::read_to_string(&path).unwrap());
        let place = path.strip_prefix(&workspace.root).unwrap().display();
        breaches.extend(
            used.iter().filter(|name| !exists(name)).map(|name| format!("{place} names {name}, which does not exist")),
        );
    }
    report("metrics, their documentation and the dashboards agree", breaches);
}

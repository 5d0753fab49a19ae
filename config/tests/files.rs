//! The files that come with this crate: every example loads, every bad example fails as the text beside it says, and
//! the README's reference is the code's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use tollkeeper_config::{Config, ConfigErrors, parse, reference};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn toml_files(name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder(name)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|kind| kind == "toml")).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// Parses a file as if it lay in `home`, where the key files of the default configuration are.
fn load_in(home: &Path, file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigErrors> {
    let origin = home.join("config").join(file.file_name().unwrap());
    parse(&fs::read_to_string(file).unwrap(), &origin, env)
}

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("data")).unwrap();
    fs::create_dir(home.path().join("config")).unwrap();
    for (file, key) in [("admin.key", "admin-key\n"), ("default.key", "default-key\n")] {
        fs::write(home.path().join("data").join(file), key).unwrap();
    }
    home
}

#[test]
fn every_example_loads_with_all_variables_set() {
    let home = home();
    let set = |name: &str| {
        let scheme = if name.ends_with("_STORE_URL") { "postgres://" } else { "" };
        Some(format!("{scheme}value-of-{name}"))
    };
    for file in toml_files("examples").into_iter().chain([folder("tollkeeper.toml")]) {
        let config = load_in(home.path(), &file, &set).unwrap_or_else(|errors| panic!("{errors}"));
        let shown = format!("{config:?}");
        assert!(!shown.contains("value-of-") && !shown.contains("admin-key"), "a secret is printed: {shown}");
        for name in ["local/fast", "local/quality", "cloud/fast", "cloud/mid", "cloud/frontier", "auto"] {
            assert!(config.aliases.contains_key(name), "{}: {name}", file.display());
        }
        for alias in config.aliases.values() {
            for (target, _) in &alias.targets {
                assert!(config.facts(target).is_some(), "{}: {} has no facts", file.display(), target);
            }
        }
    }
}

#[test]
fn the_default_configuration_runs_without_any_variable() {
    let home = home();
    let config = load_in(home.path(), &folder("tollkeeper.toml"), &|_| None).unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:4000");
    assert_eq!(config.store.path, home.path().join("config/../data/tollkeeper.db"));
    assert_eq!(config.agents["default"].key.as_ref().map(tollkeeper_config::Secret::expose), Some("default-key"));
    let disabled = config.providers.values().filter(|provider| provider.disabled.is_some());
    assert_eq!(disabled.count(), config.providers.len());
    let targets = |name: &str| config.aliases[name].targets.iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>();
    assert_eq!(targets("local/fast"), ["toll-tiny"]);
    assert_eq!(targets("auto")[..2], ["toll-tiny", "openai/gpt-6-luna"]);
    let warned = |text: &str| config.warnings.iter().any(|warning| warning.contains(text));
    assert!(warned("the provider `openai` is disabled: the environment variable OPENAI_API_KEY is not set"));
    assert!(warned("all targets of the alias `cloud/fast` are disabled"), "{:#?}", config.warnings);
    assert!(!warned("`auto`"), "{:#?}", config.warnings);
}

#[test]
fn every_bad_example_fails_as_the_text_beside_it_says() {
    let set = [("SCOUT_KEY", "sk-scout"), ("OPENAI_API_KEY", "sk-openai"), ("WEIRD_KEY", "sk ünfit")];
    let env = |name: &str| set.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
    let mut wrong = Vec::new();
    for file in toml_files("examples/bad") {
        let origin = Path::new(file.file_name().unwrap());
        let Err(errors) = parse(&fs::read_to_string(&file).unwrap(), origin, &env) else {
            panic!("{} loads", file.display());
        };
        let found = format!("{errors}\n");
        for (_, secret) in set {
            assert!(!found.contains(secret), "{found}");
        }
        let expected = file.with_extension("expected");
        if fs::read_to_string(&expected).unwrap_or_default() != found {
            wrong.push(format!("--- {} should be:\n{found}", expected.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.concat());
}

#[test]
fn the_readme_holds_the_reference() {
    let readme = fs::read_to_string(folder("README.md")).unwrap();
    let (_, rest) = readme.split_once("<!-- reference -->\n").unwrap();
    let (held, _) = rest.split_once("<!-- end of reference -->").unwrap();
    assert!(held.trim() == reference().trim(), "between its marks, README.md should be:\n{}", reference());
}

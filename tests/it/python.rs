//! The official OpenAI Python package drives the real binary: runs `tests/python` with pytest.

use std::path::Path;
use tokio::process::Command;
use tollkeeper_tests::process::Process;
use tollkeeper_tests::setup::{KEY, Setup};
use tollkeeper_tests::upstream::Upstream;

/// The shipped model, at a price, so that its metering shows.
#[cfg(feature = "llama-cpp")]
fn local(root: &Path) -> String {
    let model = root.join("models/toll-tiny.gguf");
    format!(
        "[[local.models]]\nname = \"toll-tiny\"\npath = {model:?}\ncontext = 1024\nslots = 4\nprice = {{ input = \"0.01\", output = \"0.02\" }}\n"
    )
}

#[tokio::test]
async fn the_official_client_is_served() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = root.join(".venv/bin/python");
    assert!(python.exists(), "{} is missing: `make setup` makes it", python.display());

    let upstream = Upstream::by_model_name().await;
    let setup = Setup::new().provider("up", &upstream.url(), "max_attempts = 1").alias("team/fast", &["up/plain"]);
    let setup = setup.raw(
        "[[agents]]\nname = \"poor\"\nkey = \"tk-poor\"\nmodels = [\"up/plain\"]\nbudgets = [{ window = \"day\", limit_usd = \"0.000000001\" }]\n",
    );
    let setup = setup
        .raw("[[agents]]\nname = \"hasty\"\nkey = \"tk-hasty\"\nrequests_per_minute = 1\ntokens_per_minute = 5000\n");
    #[cfg(feature = "llama-cpp")]
    let setup = setup.raw(&local(root));
    let process = Process::start(&setup).await;

    let mut pytest = Command::new(python);
    pytest.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/python"]);
    if cfg!(not(feature = "llama-cpp")) {
        pytest.arg("--ignore=tests/python/test_local.py");
    }
    pytest.env("TOLLKEEPER_URL", format!("http://{}", process.addr()));
    pytest.env("TOLLKEEPER_KEY", KEY).env("TOLLKEEPER_POOR_KEY", "tk-poor");
    pytest.env("TOLLKEEPER_HASTY_KEY", "tk-hasty");
    pytest.env("UPSTREAM_URL", format!("http://{}", upstream.addr())).env("PYTHONDONTWRITEBYTECODE", "1");
    let ran = pytest.current_dir(root).kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success(),
        "{said}\n{}\n--- the gateway:\n{}",
        String::from_utf8_lossy(&ran.stderr),
        process.output()
    );
    let (status, output) = process.terminate().await;
    assert!(status.success(), "{output}");
}

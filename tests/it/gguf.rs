//! Model files: one that cannot be loaded hurts nobody else, and says why.

use std::path::Path;
use tollkeeper_tests::asks::{CHAT, chat};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::Upstream;
use tollkeeper_tests::wait::eventually;

fn model(name: &str, path: &Path) -> String {
    format!("[[local.models]]\nname = \"{name}\"\npath = {path:?}\ncontext = 512\n")
}

#[tokio::test]
async fn corrupt_and_missing_models_are_named_with_their_reason_and_the_rest_serves() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream);
    let shipped = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/toll-tiny.gguf")).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = setup.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let mut garbled = shipped.clone();
    garbled[4..64].fill(0xff);
    let files = [
        ("missing", setup.path("missing.gguf")),
        ("empty", write("empty.gguf", b"")),
        ("text", write("text.gguf", b"I am not a model.\n")),
        ("cut", write("cut.gguf", &shipped[..shipped.len() / 2])),
        ("garbled", write("garbled.gguf", &garbled)),
        ("folder", setup.folder().to_path_buf()),
    ];
    let tables: String = files.iter().map(|(name, path)| model(name, path)).collect();
    let setup = setup.raw(&tables).alias("with-fallback", &["cut", "up/plain"]);
    let gateway = Gateway::start(setup).await;

    for (name, path) in &files {
        let answer = eventually(&format!("the failure of {name}"), async || {
            let answer = gateway.client().post_json(CHAT, &chat(name)).await;
            (answer.status == 503).then_some(answer)
        })
        .await;
        let message = answer.error()["message"].as_str().unwrap().to_owned();
        let file = path.file_name().unwrap().to_str().unwrap();
        assert!(message.contains(file), "{name}: the file is not named: {message}");
        assert!(message.len() > file.len() + name.len() + 20, "{name}: there is no reason: {message}");
        let state = gateway.metrics().await.sum("tollkeeper_backend_state", &[("backend", name)]);
        assert_eq!(state, 2.0, "{name} is down");
    }
    assert_eq!(gateway.client().post_json(CHAT, &chat("up/plain")).await.status, 200);
    let fallback = gateway.client().post_json(CHAT, &chat("with-fallback")).await;
    assert_eq!((fallback.status, fallback.header("x-tollkeeper-backend")), (200, "up/plain"));
    assert_eq!(gateway.client().get("/health/live").await.status, 200);
}

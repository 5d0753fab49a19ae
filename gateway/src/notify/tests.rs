//! Real receivers over TCP: what arrives, how often, and what becomes of the rest.

mod receiver;

use super::*;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use receiver::{Got, Receiver, Reply, eventually};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tollkeeper_config::{QuietHours, Secret, Webhook, WebhookFormat};

const SECRET: &str = "a secret of the receiver";

/// A notifier under test, its dead-letter file and its clock.
struct Bench {
    notifier: Notifier,
    folder: TempDir,
    wall_ms: Arc<AtomicI64>,
}

/// A webhook with tiny pauses, two retries, a secret, and every repetition let through.
fn hook(name: &str, url: &str) -> Webhook {
    Webhook {
        name: name.into(),
        url: Secret::new(url),
        secret: Some(Secret::new(SECRET)),
        format: WebhookFormat::Generic,
        events: NoticeKind::all().collect(),
        quiet_hours: None,
        timeout: Duration::from_secs(20),
        retries: 2,
        retry_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(2),
        repeat_after: None,
        queue: 100,
    }
}

/// Whole days but for one second of it, in UTC.
fn quiet_but_at(hour: i8) -> Option<QuietHours> {
    QuietHours::try_new(Time::constant(hour, 0, 1, 0), Time::constant(hour, 0, 0, 0), TimeZone::UTC)
}

fn dead_letter(folder: &TempDir) -> PathBuf {
    folder.path().join("notices.jsonl")
}

impl Bench {
    fn start(hooks: impl IntoIterator<Item = Webhook>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let noon: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let wall_ms = Arc::new(AtomicI64::new(noon.as_millisecond()));
        let settings = settings(&folder, hooks);
        Self { notifier: Notifier::start(&settings, Clock::fixed(wall_ms.clone())), folder, wall_ms }
    }

    fn reload(&self, hooks: impl IntoIterator<Item = Webhook>) {
        self.notifier.reload(&settings(&self.folder, hooks));
    }

    fn count(&self, webhook: &str, fate: &str) -> u64 {
        let counts = self.notifier.counts().into_iter();
        counts.filter(|(name, _, is, _)| **name == *webhook && *is == fate).map(|(.., count)| count).sum()
    }

    fn waiting(&self, webhook: &str) -> usize {
        self.notifier.waiting().into_iter().filter(|(name, _)| **name == *webhook).map(|(_, n)| n).sum()
    }

    /// The lines of the dead-letter file.
    fn dead(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(dead_letter(&self.folder)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn buried(&self, number: usize) -> Vec<Value> {
        eventually("notices are buried", || self.dead().len() >= number).await;
        self.dead()
    }

    async fn shutdown(&self) {
        self.notifier.shutdown(&CancellationToken::new()).await;
    }
}

fn settings(folder: &TempDir, hooks: impl IntoIterator<Item = Webhook>) -> Notify {
    Notify {
        dead_letter: dead_letter(folder),
        dead_letter_limit: 1 << 20,
        drain_timeout: Duration::from_secs(20),
        webhooks: hooks.into_iter().map(Arc::new).collect(),
    }
}

fn notice(kind: NoticeKind, subject: &str) -> Notice {
    let at = "2026-11-21T11:59:00Z".parse().unwrap();
    Notice::new(kind, at, subject, "The budget of the day is used up.").field("limit_usd", "5.00")
}

fn stop(subject: &str) -> Notice {
    notice(NoticeKind::Denied, subject)
}

fn reminder(subject: &str) -> Notice {
    notice(NoticeKind::Threshold, subject)
}

/// HMAC-SHA256 as RFC 2104 defines it, in hexadecimal.
fn hmac(secret: &[u8], message: &[u8]) -> String {
    let mut key = [0u8; 64];
    key[..secret.len()].copy_from_slice(secret);
    let hash = |pad: u8, rest: &[u8]| Sha256::digest([&key.map(|byte| byte ^ pad)[..], rest].concat());
    let tag = hash(0x5c, &hash(0x36, message));
    tag.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_notice_arrives_whole_and_signed() {
    assert_eq!(
        hmac(b"Jefe", b"what do ya want for nothing?"),
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        "RFC 4231, test case 2"
    );
    let mut receiver = Receiver::start([]).await;
    let bench = Bench::start([hook("chat", &receiver.url)]);
    bench.notifier.send(stop("agent scout"));
    let got = receiver.next().await;
    assert_eq!((&*got.path, got.header("content-type")), ("/hook?token=hidden", "application/json"));
    let body = got.json();
    assert_eq!((got.header("x-tollkeeper-event"), &body["event"]), ("denied", &"denied".into()));
    assert_eq!(body["id"], got.header("x-tollkeeper-notice-id"));
    assert_eq!((&body["subject"], &body["at"]), (&"agent scout".into(), &"2026-11-21T11:59:00Z".into()));
    assert_eq!(body["fields"]["limit_usd"], "5.00");
    let noon = 1_795_262_400;
    let signed = hmac(SECRET.as_bytes(), &[format!("{noon}.").as_bytes(), &got.body].concat());
    assert_eq!(got.header("x-tollkeeper-signature"), format!("t={noon},v1={signed}"));
    eventually("the notice is counted", || bench.count("chat", "delivered") == 1 && bench.waiting("chat") == 0).await;
}

#[tokio::test]
async fn the_documented_check_takes_what_is_signed_and_nothing_else() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/notifications.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let (_, snippet) = docs.split_once("```python\n").unwrap();
    let (snippet, _) = snippet.split_once("```").unwrap();
    let mut receiver = Receiver::start([]).await;
    let bench = Bench::start([hook("chat", &receiver.url)]);
    bench.notifier.send(stop("agent scout"));
    let got = receiver.next().await;
    let now = bench.wall_ms.load(Relaxed) / 1000;
    let header = got.header("x-tollkeeper-signature");
    let body = String::from_utf8(got.body.to_vec()).unwrap();
    let forged = body.replace("5.00", "9.00");
    assert_ne!(forged, body);
    let cases = [
        (SECRET, header, &*body, now + 299, "True"),
        (SECRET, header, &forged, now, "False"),
        ("another secret, long", header, &body, now, "False"),
        (SECRET, header, &body, now + 301, "False"),
        (SECRET, "", &body, now, "False"),
        (SECRET, "t=soon,v1=00", &body, now, "False"),
    ];
    for (secret, header, body, now, expected) in cases {
        let call = "import sys\nprint(is_ours(sys.argv[1], sys.argv[2], sys.argv[3].encode(), now=int(sys.argv[4])))";
        let mut python = std::process::Command::new("python3");
        python.args(["-c", &format!("{snippet}\n{call}"), secret, header, body, &now.to_string()]);
        let ran = python.output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert_eq!(said.trim(), expected, "{header} {}", String::from_utf8_lossy(&ran.stderr));
    }
}

#[tokio::test]
async fn what_failed_comes_again_with_the_same_id_and_body() {
    let mut receiver = Receiver::start([Reply::Status(500), Reply::Status(408)]).await;
    let bench = Bench::start([hook("chat", &receiver.url)]);
    bench.notifier.send(stop("agent scout"));
    let tries = [receiver.next().await, receiver.next().await, receiver.next().await];
    let same = |get: fn(&Got) -> &[u8]| tries.iter().all(|got| get(got) == get(&tries[0]));
    assert!(same(|got| got.header("x-tollkeeper-notice-id").as_bytes()) && same(|got| &got.body), "{tries:?}");
    eventually("it is delivered", || bench.count("chat", "delivered") == 1).await;
    assert_eq!((bench.count("chat", "retried"), bench.count("chat", "dead")), (2, 0));
    assert!(receiver.is_idle());
}

#[tokio::test]
async fn a_receiver_that_says_when_is_left_alone_until_then() {
    let asked = Duration::from_secs(1);
    let mut receiver = Receiver::start([Reply::With(429, "retry-after", "1".to_owned())]).await;
    let bench = Bench::start([hook("chat", &receiver.url)]);
    bench.notifier.send(stop("first"));
    let first = receiver.next().await;
    let refused = Instant::now();
    eventually("the refusal arrives", || bench.count("chat", "retried") == 1).await;
    bench.notifier.send(stop("second"));
    let (second, third) = (receiver.next().await, receiver.next().await);
    // The answer left the receiver a little after it told of the request.
    assert!(refused.elapsed() > asked - Duration::from_millis(100), "{:?}", refused.elapsed());
    assert_eq!((&second.json()["subject"], &third.json()["id"]), (&"second".into(), &first.json()["id"]));
}

#[tokio::test]
async fn a_refusal_is_final_and_redirects_are_not_followed() {
    let mut elsewhere = Receiver::start([]).await;
    let replies = [Reply::Status(404), Reply::With(307, "location", elsewhere.url.clone()), Reply::Status(400)];
    let mut receiver = Receiver::start(replies).await;
    let bench = Bench::start([hook("chat", &receiver.url)]);
    for (number, status) in [(1, 404), (2, 307), (3, 400)] {
        bench.notifier.send(stop("agent scout"));
        let got = receiver.next().await;
        let dead = bench.buried(number).await;
        let line = &dead[number - 1];
        assert_eq!(line["why"], format!("answered {status}: said the receiver"));
        assert_eq!((&line["webhook"], &line["tries"]), (&"chat".into(), &0.into()));
        assert_eq!(line["id"], got.header("x-tollkeeper-notice-id"));
        assert_eq!(line["notice"]["fields"]["limit_usd"], "5.00");
        let text = line.to_string();
        assert!(!text.contains("hidden") && !text.contains(SECRET), "a secret is written: {text}");
    }
    assert!(receiver.is_idle() && elsewhere.is_idle());
    eventually("all are counted", || bench.count("chat", "dead") == 3).await;
    assert_eq!(bench.count("chat", "retried"), 0);
}

#[tokio::test]
async fn a_receiver_that_is_not_there_gets_all_tries_and_then_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let bench = Bench::start([hook("chat", &url)]);
    bench.notifier.send(stop("agent scout"));
    let dead = bench.buried(1).await;
    assert_eq!(dead[0]["tries"], 3);
    assert!(dead[0]["why"].as_str().unwrap().starts_with("no connection: "), "{dead:?}");
    assert_eq!((bench.count("chat", "retried"), bench.count("chat", "dead")), (2, 1));
}

#[tokio::test]
async fn https_is_spoken_where_the_url_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let bench = Bench::start([Webhook { retries: 0, ..hook("chat", &url) }]);
    bench.notifier.send(stop("agent scout"));
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 22, "the record type of a TLS handshake");
    drop(stream);
    assert_eq!(bench.buried(1).await[0]["tries"], 1);
}

#[tokio::test]
async fn a_receiver_that_stalls_is_given_up_and_delays_no_other() {
    let mut stalled = Receiver::start([Reply::Stall]).await;
    let mut healthy = Receiver::start([]).await;
    let slow = Webhook { timeout: Duration::from_secs(600), ..hook("slow", &stalled.url) };
    let bench = Bench::start([slow.clone(), hook("healthy", &healthy.url)]);
    bench.notifier.send(stop("first"));
    stalled.next().await;
    bench.notifier.send(stop("second"));
    assert_eq!(
        [healthy.next().await, healthy.next().await].map(|got| got.json()["subject"].clone()),
        ["first", "second"]
    );
    assert_eq!((bench.waiting("slow"), bench.count("slow", "delivered")), (2, 0));

    let mut stalled = Receiver::start([Reply::Stall, Reply::Stall]).await;
    let bench =
        Bench::start([Webhook { timeout: Duration::from_millis(50), retries: 1, ..hook("slow", &stalled.url) }]);
    bench.notifier.send(stop("first"));
    let dead = bench.buried(1).await;
    assert_eq!((&dead[0]["why"], &dead[0]["tries"]), (&"no answer within 50ms".into(), &2.into()));
    assert_eq!(stalled.next().await.json()["id"], stalled.next().await.json()["id"]);
}

#[tokio::test]
async fn webhooks_are_told_of_what_they_ask_for() {
    let mut receiver = Receiver::start([]).await;
    let bench = Bench::start([Webhook { events: vec![NoticeKind::Killed], ..hook("chat", &receiver.url) }]);
    for kind in NoticeKind::all() {
        bench.notifier.send(notice(kind, "run 7"));
    }
    assert_eq!(receiver.next().await.json()["event"], "killed");
    bench.shutdown().await;
    assert!(receiver.is_idle());
}

#[tokio::test]
async fn of_a_flood_one_is_sent_and_the_rest_is_counted() {
    let mut receiver = Receiver::start([]).await;
    let bench = Bench::start([Webhook { repeat_after: Some(Duration::from_secs(600)), ..hook("chat", &receiver.url) }]);
    for _ in 0..863 {
        bench.notifier.send(stop("agent scout").key("day"));
    }
    receiver.next().await;
    bench.shutdown().await;
    assert!(receiver.is_idle());
    assert_eq!((bench.count("chat", "delivered"), bench.count("chat", "suppressed")), (1, 862));
}

#[tokio::test]
async fn who_hears_of_stops_alone_hears_of_each_that_follows_a_resumption() {
    let mut receiver = Receiver::start([]).await;
    let bench = Bench::start([Webhook {
        events: vec![NoticeKind::Paused, NoticeKind::Killed],
        repeat_after: Some(Duration::from_secs(600)),
        ..hook("on-call", &receiver.url)
    }]);
    for stop in [NoticeKind::Paused, NoticeKind::Killed] {
        for kind in [stop, NoticeKind::Resumed, stop, stop] {
            bench.notifier.send(notice(kind, "agent scout"));
        }
    }
    let mut events = Vec::new();
    for _ in 0..4 {
        events.push(receiver.next().await.json()["event"].as_str().unwrap().to_owned());
    }
    assert_eq!(events, ["paused", "paused", "killed", "killed"]);
    bench.shutdown().await;
    assert!(receiver.is_idle());
    assert_eq!(bench.count("on-call", "suppressed"), 2);
}

#[tokio::test]
async fn reminders_wait_for_the_morning_and_stops_do_not() {
    let mut receiver = Receiver::start([]).await;
    let quiet = Webhook { quiet_hours: quiet_but_at(7), ..hook("chat", &receiver.url) };
    let bench = Bench::start([quiet.clone()]);
    bench.notifier.send(reminder("agent a"));
    bench.notifier.send(reminder("agent b"));
    bench.notifier.send(stop("agent c"));
    assert_eq!(receiver.next().await.json()["subject"], "agent c");
    eventually("the reminders wait", || bench.waiting("chat") == 2).await;
    let morning: Timestamp = "2026-11-22T07:00:00Z".parse().unwrap();
    bench.wall_ms.store(morning.as_millisecond(), Relaxed);
    // Has it look at the clock.
    bench.reload([quiet]);
    let digest = receiver.next().await;
    assert_eq!(
        (digest.header("x-tollkeeper-event"), digest.json()["notices"].as_array().unwrap().len()),
        ("digest", 2)
    );
    eventually("they are counted one by one", || bench.count("chat", "delivered") == 3).await;
}

#[tokio::test]
async fn a_full_queue_drops_reminders_and_says_so() {
    let mut receiver = Receiver::start([Reply::Stall]).await;
    let bench = Bench::start([Webhook { queue: 3, ..hook("chat", &receiver.url) }]);
    bench.notifier.send(stop("in flight"));
    receiver.next().await;
    bench.notifier.send(reminder("a"));
    (0..4).for_each(|number| bench.notifier.send(stop(&number.to_string())));
    assert_eq!((bench.waiting("chat"), bench.count("chat", "dropped")), (4, 2));
}

#[tokio::test]
async fn a_reload_keeps_queues_mends_urls_adds_and_removes() {
    let mut receiver = Receiver::start([]).await;
    let mut added = Receiver::start([]).await;
    let an_hour = Duration::from_secs(3600);
    let failing = Receiver::start(std::iter::repeat_n(Reply::With(503, "retry-after", "3600".to_owned()), 9)).await;
    let wrong = Webhook { retry_pause: an_hour, longest_pause: an_hour, ..hook("wrong", &failing.url) };
    let gone = Webhook { name: "gone".into(), ..wrong.clone() };
    let quiet = Webhook { quiet_hours: quiet_but_at(7), ..hook("quiet", &receiver.url) };
    let bench = Bench::start([wrong.clone(), gone, quiet.clone()]);
    bench.notifier.send(reminder("agent scout"));
    eventually("both have failed", || bench.count("wrong", "retried") + bench.count("gone", "retried") == 2).await;

    bench.reload([quiet.clone(), Webhook { url: Secret::new(&*receiver.url), ..wrong }, hook("added", &added.url)]);
    // That of the mended one arrives at once, that of the removed one is buried, that of the unchanged one waits on.
    assert_eq!(receiver.next().await.json()["subject"], "agent scout");
    let dead = bench.buried(1).await;
    assert_eq!((&dead[0]["webhook"], &dead[0]["why"]), (&"gone".into(), &"the webhook was removed".into()));
    assert_eq!((bench.waiting("quiet"), bench.waiting("gone")), (1, 0));
    bench.notifier.send(stop("agent new"));
    assert_eq!(added.next().await.json()["subject"], "agent new");
    assert_eq!(bench.notifier.waiting().len(), 3);
    bench.shutdown().await;
    assert_eq!(bench.dead().len(), 2);
}

#[tokio::test]
async fn a_stop_of_the_gateway_delivers_what_it_can_and_buries_the_rest() {
    let mut receiver = Receiver::start([Reply::With(503, "retry-after", "3600".to_owned())]).await;
    let mut stalled = Receiver::start([Reply::Stall]).await;
    let bench = Bench::start([
        hook("healthy", &receiver.url),
        Webhook { timeout: Duration::from_secs(600), ..hook("stalled", &stalled.url) },
        Webhook { quiet_hours: quiet_but_at(7), events: vec![NoticeKind::Threshold], ..hook("quiet", &receiver.url) },
    ]);
    bench.notifier.send(stop("agent scout"));
    eventually("it waits for an hour", || bench.count("healthy", "retried") == 1).await;
    stalled.next().await;
    bench.notifier.send(reminder("agent scout"));

    let force = CancellationToken::new();
    let shutdown = bench.notifier.shutdown(&force);
    tokio::pin!(shutdown);
    let healthy = eventually("the healthy one has all", || bench.count("healthy", "delivered") == 2);
    tokio::select! {
        () = &mut shutdown => panic!("one receiver still stalls"),
        () = healthy => force.cancel(),
    }
    shutdown.await;
    let mut dead: Vec<_> = bench.dead().iter().map(|line| format!("{} {}", line["webhook"], line["why"])).collect();
    dead.sort();
    let stopped = "\"stalled\" \"the gateway stopped\"";
    assert_eq!(dead, ["\"quiet\" \"the gateway stopped in quiet hours\"", stopped, stopped]);
    assert!(bench.notifier.waiting().iter().all(|(_, waiting)| *waiting == 0));
    bench.notifier.send(stop("too late"));
    assert_eq!((bench.count("healthy", "dropped"), bench.waiting("healthy")), (1, 0));
    assert_eq!(receiver.next().await.json()["subject"], "agent scout");
}

#[tokio::test]
async fn without_webhooks_nothing_happens() {
    let bench = Bench::start([]);
    bench.notifier.send(stop("agent scout"));
    bench.shutdown().await;
    assert!(bench.dead().is_empty() && bench.notifier.counts().is_empty());
}

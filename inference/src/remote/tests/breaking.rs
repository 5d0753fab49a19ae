//! What failures do to a provider's health, and what a reload does.

use super::upstream::Step::{Close, Send};
use super::upstream::{FINISH, Upstream, chunked, open_head, text, whole};
use super::*;
use crate::BackendHealth;
use std::collections::BTreeMap;

fn cooling(remote: &Remote, model: &str) -> Option<Duration> {
    match remote.model_state(model).health {
        BackendHealth::Cooling { until } => Some(until - Instant::now()),
        BackendHealth::Ready => None,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_model_cools_and_comes_back() {
    let bad = vec![Send(whole("500 Oops", "", "{}"))];
    let good = vec![Send(whole("200 OK", "", ANSWER))];
    let upstream = Upstream::start([vec![bad.clone(); 4], vec![good]].concat()).await;
    let remote = remote(provider(&upstream.url));
    for expected in [None, None, Some(Duration::from_secs(1))] {
        fault_of(&remote, UNARY).await;
        assert_eq!(cooling(&remote, "m"), expected);
    }
    assert_eq!((cooling(&remote, "other"), cooling(&remote, "unused")), (None, None));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cooling(&remote, "m"), None, "half open");
    fault_of(&remote, UNARY).await;
    assert_eq!(cooling(&remote, "m"), Some(Duration::from_secs(2)));
    tokio::time::sleep(Duration::from_secs(2)).await;
    send(&remote, call(UNARY)).await.unwrap();
    assert_eq!(cooling(&remote, "m"), None);
    assert_eq!(remote.state().health, BackendHealth::Ready, "a model's faults are its own");
}

#[tokio::test(start_paused = true)]
async fn streams_that_break_off_count_as_failures() {
    let script = vec![Send(open_head()), Send(text("a").into()), Close];
    let whole = vec![Send(chunked((text("a") + FINISH).as_bytes(), &[]))];
    let upstream = Upstream::start([vec![script.clone(); 2], vec![whole], vec![script; 3]].concat()).await;
    let remote = remote(provider(&upstream.url));
    for _ in 0..5 {
        read_out(frames(send(&remote, call(STREAM)).await.unwrap())).await;
        assert_eq!(cooling(&remote, "m"), None, "no three in a row");
    }
    read_out(frames(send(&remote, call(STREAM)).await.unwrap())).await;
    assert_eq!(cooling(&remote, "m"), Some(Duration::from_secs(1)));
    // A broken line is the provider's: its other models cool with it.
    assert_eq!(cooling(&remote, "other"), Some(Duration::from_secs(1)));
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed_and_a_refused_key_cools_everything() {
    let limited = Upstream::once(whole("429 No", "retry-after: 42\r\n", "{}")).await;
    let remote_ = remote(provider(&limited.url));
    fault_of(&remote_, UNARY).await;
    assert_eq!((cooling(&remote_, "m"), cooling(&remote_, "other")), (Some(Duration::from_secs(42)), None));

    let limited = vec![Send(whole("429 No", "retry-after: 600\r\n", "{}"))];
    let refused = vec![Send(whole("401 No", "", "{}"))];
    let upstream = Upstream::start(vec![limited, refused]).await;
    let remote_ = remote(provider(&upstream.url));
    fault_of(&remote_, UNARY).await;
    remote_.send(&"other".into(), &call(UNARY)).await.unwrap_err();
    let minutes = |count: u64| Some(Duration::from_secs(count * 60));
    let coolings = ["m", "other", "third"].map(|model| cooling(&remote_, model));
    assert_eq!(coolings, [minutes(10), minutes(5), minutes(5)], "the longer of the model's and the provider's");
}

#[tokio::test(start_paused = true)]
async fn time_to_first_token_is_that_of_the_first_frame() {
    use super::upstream::Step::Wait;
    let seconds = Duration::from_secs;
    let script =
        vec![Send(open_head()), Wait(seconds(3)), Send(text("a").into()), Wait(seconds(9)), Send(FINISH.into())];
    let upstream = Upstream::start(vec![script]).await;
    let remote = remote(provider(&upstream.url));
    assert_eq!(remote.model_state("m").ttft, None);
    read_out(frames(send(&remote, call(STREAM)).await.unwrap())).await;
    for ttft in [remote.model_state("m").ttft.unwrap(), remote.state().ttft.unwrap()] {
        assert!((seconds(3)..seconds(3) + Duration::from_millis(10)).contains(&ttft), "{ttft:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_did_not_change() {
    let config = |providers: [Provider; 2]| -> BTreeMap<String, Arc<Provider>> {
        providers.into_iter().map(|provider| (provider.name.clone(), Arc::new(provider))).collect()
    };
    let named = |name: &str, url: &str| Provider { name: name.to_owned(), ..provider(url) };
    let (tls, runtime) = (crate::remote::tls(), tokio::runtime::Handle::current());
    let old = config([named("a", "http://a/v1"), named("b", "http://b/v1")]);
    let old = crate::remotes(&old, &crate::Remotes::new(), &tls, &runtime);
    let new = config([named("a", "http://a/v1"), named("b", "http://other/v1")]);
    let new = crate::remotes(&new, &old, &tls, &runtime);
    assert!(Arc::ptr_eq(&old["a"], &new["a"]));
    assert!(!Arc::ptr_eq(&old["b"], &new["b"]));
    assert_eq!(new["b"].peer().unwrap().server_address.as_ref(), "other");
    let gone = crate::remotes(&config([named("a", "http://a/v1"), named("c", "http://c/v1")]), &new, &tls, &runtime);
    assert_eq!(gone.keys().map(|name| &**name).collect::<Vec<_>>(), ["a", "c"]);
}

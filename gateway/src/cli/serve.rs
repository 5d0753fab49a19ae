//! `tollkeeper serve`: start, reload when told or when the file changes, drain when told.

use super::{FileArg, complain, say};
use crate::telemetry;
use crate::{Gateway, Options, Running};
use clap::Args;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tollkeeper_config::reload::{Reloader, Watch};
use tollkeeper_config::{Config, ConfigErrors};

/// Its arguments.
#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    file: FileArg,
    /// Listen here instead of at `server.listen`
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), String> {
        let reloader = Reloader::new(&self.file.file);
        let mut config = self.file.load()?;
        if let Some(listen) = self.listen {
            config.server.listen = listen;
        }
        telemetry::init(&config.log)?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("the runtime could not be started: {error}"))?;
        runtime.block_on(serve(Arc::new(config), reloader))
    }
}

async fn serve(config: Arc<Config>, reloader: Reloader) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("signals cannot be received: {error}");
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let mut ends = Ends {
        terminate: signal(SignalKind::terminate()).map_err(failed)?,
        interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
    };
    // Whatever becomes of its file meanwhile: this very program.
    let options = Options {
        engine_program: Some(Path::new("/proc/self/exe").into()),
        reloader: Some(reloader.clone()),
        ..Options::default()
    };
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let mut running = Gateway::start(config, options).await.map_err(|error| error.to_string())?;
    let watch = watch(&running, &reloader);
    say(&format!("tollkeeper {} listening on {scheme}://{}", env!("CARGO_PKG_VERSION"), running.addr));
    if let Some(addr) = running.admin_addr {
        say(&format!("/admin is served on {scheme}://{addr}"));
    }
    loop {
        tokio::select! {
            () = ends.next() => break,
            () = running.died() => return Err("the gateway stopped accepting connections because of a bug; its log tells more".to_owned()),
            _ = hangup.recv() => {
                let reloader = reloader.clone();
                let read = tokio::task::spawn_blocking(move || reloader.reload()).await;
                if let Ok(read) = read {
                    take(read, &running.reloader(), &running.refuser());
                }
            }
        }
    }
    drop(watch);
    tracing::info!("draining; a second signal ends at once");
    let force = running.force();
    let drain = running.shutdown();
    tokio::pin!(drain);
    tokio::select! {
        () = &mut drain => {}
        () = ends.next() => {
            force.cancel();
            drain.await;
        }
    }
    tracing::info!("drained");
    Ok(())
}

/// The two signals that end the gateway.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Watches the file until the result is dropped. Without a watch, SIGHUP still works.
fn watch(running: &Running, reloader: &Reloader) -> Option<Watch> {
    let (take_over, refuse) = (running.reloader(), running.refuser());
    let watch = reloader.watch(move |read| take(read, &take_over, &refuse));
    let failed = |error: &std::io::Error| {
        complain(&format!("the file is not watched for changes ({error}); send SIGHUP after changing it"));
    };
    watch.inspect_err(failed).ok()
}

/// Takes over what was read, or says why not: a bad file changes nothing.
fn take(read: Result<Arc<Config>, ConfigErrors>, take_over: &impl Fn(&Arc<Config>), refuse: &impl Fn()) {
    match read {
        Ok(config) => take_over(&config),
        Err(problems) => {
            refuse();
            tracing::error!("the changed configuration is refused, the old one stays in force:\n{problems}");
        }
    }
}

//! `tollkeeper models`: where the local models of a running gateway are, and bringing them in and out.

use super::{FileArg, say};
use clap::{Args, Subcommand};
use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tollkeeper_config::Config;

/// A gateway that does not answer within this is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Its arguments.
#[derive(Debug, Args)]
pub(super) struct Models {
    #[command(flatten)]
    file: FileArg,
    #[command(subcommand)]
    command: Option<ModelsCommand>,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// Where they are, what they take, and how long until they can serve (the default)
    Status {
        /// As JSON, with the last swaps
        #[arg(long)]
        json: bool,
    },
    /// Bring a model into memory; others make room for it
    Load(Name),
    /// Take a model out of memory when what runs has ended
    Unload(Name),
    /// Never take a model out of memory for another
    Pin(Name),
    /// Let a model make room for others again
    Unpin(Name),
}

#[derive(Debug, Args)]
struct Name {
    /// The model's name in the configuration
    model: String,
}

impl Models {
    pub(super) fn run(self) -> Result<(), String> {
        let config = self.file.load()?;
        let (action, name) = match self.command.unwrap_or(ModelsCommand::Status { json: false }) {
            ModelsCommand::Status { json } => return status(&config, json),
            ModelsCommand::Load(name) => ("load", name),
            ModelsCommand::Unload(name) => ("unload", name),
            ModelsCommand::Pin(name) => ("pin", name),
            ModelsCommand::Unpin(name) => ("unpin", name),
        };
        let path = format!("/admin/v1/models/{}/{action}", name.model);
        let model = ask(&config, &Method::POST, &path)?;
        table(std::slice::from_ref(&model));
        Ok(())
    }
}

fn status(config: &Config, as_json: bool) -> Result<(), String> {
    let answer = ask(config, &Method::GET, "/admin/v1/models")?;
    if as_json {
        say(&answer.to_string());
        return Ok(());
    }
    table(answer["models"].as_array().map_or(&[][..], Vec::as_slice));
    let memory = &answer["memory"];
    let taken = match memory["taken_bytes"].as_u64() {
        Some(taken) if taken > 0 => format!("; others hold {} of it", size(&memory["taken_bytes"])),
        _ => String::new(),
    };
    say(&format!("{} of {} free{taken}", size(&memory["free_bytes"]), size(&memory["budget_bytes"])));
    Ok(())
}

fn table(models: &[Value]) {
    let line = |[name, state, pin, ready, bytes, slots, context]: [&str; 7]| {
        say(&format!("{name:<28} {state:<12} {pin:<7} {ready:>10} {bytes:>10} {slots:>7} {context:>8}"));
    };
    line(["model", "state", "pinned", "ready in", "memory", "slots", "context"]);
    for model in models {
        let seconds = model["ready_in_ms"].as_f64().unwrap_or(0.0) / 1000.0;
        line([
            model["name"].as_str().unwrap_or(""),
            &state(model),
            if model["pinned"] == true { "yes" } else { "" },
            &if seconds > 0.0 { format!("{seconds:.1} s") } else { "now".to_owned() },
            &size(&model["bytes"]),
            &format!("{}/{}", model["slots_busy"], model["slots"]),
            &model["context"].to_string(),
        ]);
        if let Some(reason) = model["reason"].as_str() {
            say(&format!("    {reason}"));
        }
    }
}

/// `ready`, or `loading 63%` where the engine tells.
fn state(model: &Value) -> String {
    let state = model["state"].as_str().unwrap_or("");
    match model["progress"].as_f64() {
        Some(done) => format!("{state} {:.0}%", done * 100.0),
        None => state.to_owned(),
    }
}

fn size(bytes: &Value) -> String {
    let bytes = bytes.as_f64().unwrap_or(0.0);
    let (unit, name) = if bytes >= 1e9 { (1u64 << 30, "GiB") } else { (1 << 20, "MiB") };
    #[expect(clippy::cast_precision_loss, reason = "a size for people")]
    let shown = bytes / unit as f64;
    format!("{shown:.1} {name}")
}

/// Asks the gateway that runs with this configuration, with the operator's key.
fn ask(config: &Config, method: &Method, path: &str) -> Result<Value, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let asked = runtime.block_on(async { tokio::time::timeout(PATIENCE, send(config, method, path)).await });
    asked.map_err(|_| format!("the gateway at {} did not answer within {PATIENCE:?}", config.server.listen))?
}

async fn send(config: &Config, method: &Method, path: &str) -> Result<Value, String> {
    let address = reachable(config.server.listen);
    let lost = |error: String| format!("no gateway answers at {address} (`server.listen`): {error}; is it running?");
    let stream = TcpStream::connect(address).await.map_err(|error| lost(error.to_string()))?;
    let Some(tls) = &config.server.tls else { return exchange(config, method, path, stream).await };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(&tls.cert).map_err(|error| error.to_string())?;
    for certificate in certificates {
        roots.add(certificate.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    }
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::from(address.ip());
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let stream = connector.connect(name, stream).await.map_err(|error| lost(error.to_string()))?;
    exchange(config, method, path, stream).await
}

async fn exchange<S>(config: &Config, method: &Method, path: &str, stream: S) -> Result<Value, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let lost = |error: hyper::Error| format!("the gateway broke off: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let talking = tokio::spawn(connection);
    let key = config.server.admin_key.as_ref().ok_or("this needs `server.admin_key` in the configuration")?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", config.server.listen.to_string())
        .header("authorization", format!("Bearer {}", key.expose()))
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("`{path}` cannot be asked for: {error}"))?;
    let response = sender.send_request(request).await.map_err(lost)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(lost)?.to_bytes();
    talking.abort();
    let answer: Value = serde_json::from_slice(&body).map_err(|error| format!("the answer is not JSON: {error}"))?;
    match answer["error"]["message"].as_str() {
        _ if status.is_success() => Ok(answer),
        Some(message) => Err(message.to_owned()),
        None => Err(format!("the gateway answered {status}")),
    }
}

/// Where a server that listens there can be reached from its own machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

//! Asks a running gateway, with the operator's key: the one that runs with a configuration file, or one at a URL.

use super::FileArg;
use clap::Args;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_rustls::ConfigBuilderExt;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tollkeeper_config::{Secret, environment};

/// A gateway that does not answer within this is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which gateway.
#[derive(Debug, Args)]
pub(super) struct At {
    #[command(flatten)]
    file: FileArg,
    /// The gateway's URL, such as `https://gateway:4000`; without it `TOLLKEEPER_URL`, else the address in the configuration file. With a URL the
    /// operator's key is `TOLLKEEPER_ADMIN_KEY`, if that is set, and no file is read
    #[arg(long, value_name = "URL", global = true)]
    url: Option<String>,
    /// JSON instead of a table
    #[arg(long, global = true)]
    pub(super) json: bool,
}

/// A gateway that can be asked.
pub(super) struct Gateway {
    /// Host and port to connect to.
    authority: String,
    /// What its certificate must be for, and who may have signed it.
    tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
    key: Secret,
}

impl At {
    /// Finds out where the gateway is and what opens it.
    pub(super) fn gateway(&self) -> Result<Gateway, String> {
        Gateway::named(self.url.clone(), &self.file)
    }

    /// The same with an agent's key.
    pub(super) fn asking_with(&self, key: Secret) -> Result<Gateway, String> {
        match self.url.clone().or(environment::of_operators().url) {
            Some(url) => Gateway::at(&url, key),
            None => Gateway::of(&self.file, Some(key)),
        }
    }
}

fn admin_key(file: &FileArg) -> Result<Secret, String> {
    let missing =
        "this needs the operator's key: `server.admin_key` in the configuration, or TOLLKEEPER_ADMIN_KEY with a URL";
    file.load()?.server.admin_key.ok_or_else(|| missing.to_owned())
}

impl Gateway {
    /// The one at a URL, of the command line or else of the environment, or that runs with this configuration.
    pub(super) fn named(url: Option<String>, file: &FileArg) -> Result<Self, String> {
        let known = environment::of_operators();
        match (url.or(known.url), known.admin_key) {
            (Some(url), Some(key)) => Self::at(&url, key),
            (Some(url), None) => Self::at(&url, admin_key(file)?),
            (None, _) => Self::of(file, None),
        }
    }

    fn at(url: &str, key: Secret) -> Result<Self, String> {
        let wrong = || format!("`{url}` is no URL such as http://127.0.0.1:4000");
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let (host, secure) = match (uri.host(), uri.scheme_str()) {
            (Some(host), Some("http")) => (host, false),
            (Some(host), Some("https")) => (host, true),
            _ => return Err(wrong()),
        };
        if !matches!(uri.path(), "" | "/") {
            return Err(format!("{}: without a path", wrong()));
        }
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = if secure { Some((name(host)?, by_system()?)) } else { None };
        Ok(Self { authority: format!("{host}:{port}"), tls, key })
    }

    /// The one that runs with this configuration, on this machine; without a key, as its operator.
    fn of(file: &FileArg, key: Option<Secret>) -> Result<Self, String> {
        let server = file.load()?.server;
        let admin = server.admin_listen.filter(|_| key.is_none());
        let address = reachable(admin.unwrap_or(server.listen));
        let tls = match &server.tls {
            None => None,
            Some(tls) => Some((ServerName::from(address.ip()), by_itself(&tls.cert)?)),
        };
        let key = key.or(server.admin_key).ok_or("this needs `server.admin_key` in the configuration")?;
        Ok(Self { authority: address.to_string(), tls, key })
    }

    /// Asks, and gives the answer.
    ///
    /// # Errors
    /// Nobody answers, or the answer is an error: its message.
    pub(super) fn ask(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let asked = runtime.block_on(async { tokio::time::timeout(PATIENCE, self.send(method, path, body)).await });
        asked.map_err(|_| format!("the gateway at {} did not answer within {PATIENCE:?}", self.authority))?
    }

    async fn send(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let lost = |error: std::io::Error| format!("no gateway answers at {}: {error}; is it running?", self.authority);
        let stream = TcpStream::connect(&self.authority).await.map_err(lost)?;
        let Some((name, config)) = &self.tls else { return self.exchange(method, path, body, stream).await };
        let connector = tokio_rustls::TlsConnector::from(config.clone());
        let stream = connector.connect(name.clone(), stream).await.map_err(lost)?;
        self.exchange(method, path, body, stream).await
    }

    async fn exchange<S>(&self, method: &Method, path: &str, body: Option<&Value>, stream: S) -> Result<Value, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let lost = |error: hyper::Error| format!("the gateway broke off: {error}");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let talking = tokio::spawn(connection);
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.authority)
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", self.key.expose()))
            .body(Full::<Bytes>::from(body))
            .map_err(|error| format!("`{path}` cannot be asked for: {error}"))?;
        let response = sender.send_request(request).await.map_err(lost)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(lost)?.to_bytes();
        talking.abort();
        let answer: Value =
            serde_json::from_slice(&body).map_err(|error| format!("the answer is not JSON: {error}"))?;
        match answer["error"]["message"].as_str() {
            _ if status.is_success() => Ok(answer),
            Some(message) => Err(message.to_owned()),
            None => Err(format!("the gateway answered {status}")),
        }
    }
}

fn name(host: &str) -> Result<ServerName<'static>, String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned()).map_err(|_| format!("`{host}` is no name of a host"))
}

/// Trusts whom this system trusts.
fn by_system() -> Result<Arc<ClientConfig>, String> {
    let roots = ClientConfig::builder().with_native_roots().map_err(|error| error.to_string())?;
    Ok(Arc::new(roots.with_no_client_auth()))
}

/// Trusts the gateway's own certificate file.
fn by_itself(cert: &Path) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(cert).map_err(|error| error.to_string())?;
    for certificate in certificates {
        roots.add(certificate.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    }
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
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

/// A name as it may stand in a path.
pub(super) fn in_path(name: &str) -> String {
    percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string()
}

//! The values that keys can have: what each looks like in the file, and how it is read.

use crate::budget::{OnLimit, OnSharedDown, Window};
use crate::catalog::Ability;
use crate::daily::{DailyTime, time_of_day, zone_named};
use crate::formats::{ReasoningFormat, ToolFormat};
use crate::kinds::{PROVIDER_KINDS, ProviderKind};
use crate::notify::{NoticeKind, WebhookFormat};
use crate::problem::Problems;
use crate::read::{Node, Read, choose, one_of, read_choice, read_text};
use crate::settings::{Durability, EngineHost, EngineKind, Gpu, KvType, LogFormat, Pooling, Priority, SwapWhen};
use crate::strategy::{Flaw, Strategy};
use crate::units::{PicoUsd, Secret, Usd, parse_duration, parse_size};
use jiff::civil::Time;
use jiff::tz::TimeZone;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use tollkeeper_protocol::usage::ServiceTier;

/// Where a secret is to be had.
#[derive(Debug, Clone)]
pub(crate) enum SecretRef {
    /// An environment variable.
    Env(String),
    /// A file, trimmed.
    File(PathBuf),
    /// The text itself.
    Literal(Secret),
}

/// Memory for models.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Vram {
    /// Ask the device.
    Auto,
    /// So many bytes.
    Bytes(u64),
}

/// How long something is kept; `None` is "forever".
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep(pub(crate) Option<Duration>);

/// How much may be kept, in bytes; 0 is "off".
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeptBytes(pub(crate) u64);

/// How often something is done.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// Never.
    Off,
    /// So long after the last time.
    Every(Duration),
}

/// A time of day.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(pub(crate) Time);

/// A time zone.
#[derive(Debug, Clone)]
pub(crate) struct Zone(pub(crate) TimeZone);

/// A number of bytes from 1 to `MAX`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size<const MAX: u64>(pub(crate) u64);

/// An origin that browsers may call from.
#[derive(Debug, Clone)]
pub(crate) struct Origin(pub(crate) String);

/// An absolute `http` or `https` URL without a trailing slash.
#[derive(Debug, Clone)]
pub(crate) struct BaseUrl(pub(crate) String);

/// A name of lower-case letters, digits, `_`, `-` and `.`.
#[derive(Debug, Clone)]
pub(crate) struct Slug(pub(crate) String);

/// A name of letters, digits, `_`, `-`, `.` and `:`.
#[derive(Debug, Clone)]
pub(crate) struct ModelName(pub(crate) String);

/// A model name that may hold slashes.
#[derive(Debug, Clone)]
pub(crate) struct AliasName(pub(crate) String);

/// Where guessed tokens come from; the file of a draft has a key of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guesses {
    Off,
    Lookup,
    Draft,
}

/// A multiple of what is normal, more than 1; `None` is "off".
#[derive(Debug, Clone, Copy)]
pub(crate) struct Multiple(pub(crate) Option<f64>);

/// How often something is repeated; `None` is "off".
#[derive(Debug, Clone, Copy)]
pub(crate) struct Repeats(pub(crate) Option<u32>);

/// How long a pause lasts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PauseTime {
    For(Duration),
    ByHand,
}

/// A whole number or a fraction within these bounds; anything else is refused as no `T`.
fn number_within<T: Read>(
    node: &Node<'_, '_>,
    bounds: RangeInclusive<f64>,
    problems: &mut Problems<'_>,
) -> Option<f64> {
    let value = node.value.get_ref();
    let written = value.as_float().map(|number| number.as_str());
    let Some(written) = written.or_else(|| value.as_integer().map(|number| number.as_str())) else {
        node.refuse_type::<T>(problems);
        return None;
    };
    let read = written.parse().ok().filter(|number| bounds.contains(number));
    if read.is_none() {
        node.refuse::<T>(format_args!(", found {written}"), problems);
    }
    read
}

/// A difficulty from 0 to 1, in thousandths.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Difficulty(pub(crate) u16);

impl Read for Difficulty {
    fn shape() -> String {
        "a number from 0 to 1".to_owned()
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        // From 0 to 1000.
        number_within::<Self>(&node, 0.0..=1.0, problems).map(|difficulty| Self((difficulty * 1000.0).round() as u16))
    }
}

/// A factor from -100 to 100.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale(pub(crate) f32);

impl Read for Scale {
    fn shape() -> String {
        "a number from -100 to 100".to_owned()
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        number_within::<Self>(&node, -100.0..=100.0, problems).map(|factor| Self(factor as f32))
    }
}

impl Read for Multiple {
    fn shape() -> String {
        "\"off\" or a number from 1.1 to 10000".to_owned()
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let value = node.value.get_ref();
        let number = value.as_float().map(|number| number.as_str());
        let number = number.or_else(|| value.as_integer().map(|number| number.as_str()));
        let read = match (value.as_str(), number) {
            (Some("off"), _) => Some(Self(None)),
            (_, Some(number)) => {
                let number = number.replace('_', "").parse().ok();
                number.filter(|multiple| (1.1..=10_000.0).contains(multiple)).map(|multiple| Self(Some(multiple)))
            }
            _ => None,
        };
        if read.is_none() {
            node.refuse::<Self>("", problems);
        }
        read
    }
}

impl Read for Repeats {
    fn shape() -> String {
        "\"off\" or a whole number from 3 to 10000".to_owned()
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let value = node.value.get_ref();
        let number = value.as_integer().and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok());
        let read = match (value.as_str(), number) {
            (Some("off"), _) => Some(Self(None)),
            (_, Some(number)) => (3..=10_000).contains(&number).then_some(Self(Some(number))),
            _ => None,
        };
        if read.is_none() {
            node.refuse::<Self>("", problems);
        }
        read
    }
}

impl Read for Gpu {
    fn shape() -> String {
        "a number from 0 to 63 or a UUID such as \"GPU-…\"".to_owned()
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let value = node.value.get_ref();
        let written = value.as_str().or_else(|| value.as_integer().map(|number| number.as_str()));
        let read = written.and_then(Self::parse).filter(|gpu| value.as_str().is_none() || matches!(gpu, Self::Uuid(_)));
        if read.is_none() {
            node.refuse::<Self>("", problems);
        }
        read
    }
}

/// A status for budget refusals.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BudgetStatus(pub(crate) u16);

impl Read for BudgetStatus {
    fn shape() -> String {
        "402, 429 or 422".to_owned()
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let status = node.value.get_ref().as_integer().and_then(|status| status.as_str().parse().ok());
        let read = status.filter(|status| [402, 429, 422].contains(status));
        if read.is_none() {
            node.refuse::<Self>("", problems);
        }
        read.map(Self)
    }
}

impl Read for &'static ProviderKind {
    fn shape() -> String {
        one_of(&PROVIDER_KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>())
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let choices: Vec<_> = PROVIDER_KINDS.iter().map(|kind| (kind.name, kind)).collect();
        choose(node, &choices, problems)
    }
}

impl Read for ToolFormat {
    fn shape() -> String {
        one_of(&Self::NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>())
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        choose(node, Self::NAMES, problems)
    }
}

impl Read for ReasoningFormat {
    fn shape() -> String {
        one_of(&Self::NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>())
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        choose(node, Self::NAMES, problems)
    }
}

impl Read for Ability {
    fn shape() -> String {
        one_of(&Self::NAMES.map(|(name, _)| name))
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        choose(node, &Self::NAMES, problems)
    }
}

impl Read for NoticeKind {
    fn shape() -> String {
        one_of(&Self::all().map(Self::name).collect::<Vec<_>>())
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let choices: Vec<_> = Self::all().map(|kind| (kind.name(), kind)).collect();
        choose(node, &choices, problems)
    }
}

impl<const MAX: u64> Read for Size<MAX> {
    fn shape() -> String {
        format!("a size such as \"32MiB\", at most {} GiB", MAX >> 30)
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let read = node.value.get_ref().as_str().and_then(parse_size).filter(|size| (1..=MAX).contains(size));
        if read.is_none() {
            node.refuse::<Self>("", problems);
        }
        read.map(Self)
    }
}

read_choice! {
    Durability: "process" => Self::Process, "power" => Self::Power;
    LogFormat: "text" => Self::Text, "json" => Self::Json;
    EngineKind: "llama.cpp" => Self::LlamaCpp, "candle" => Self::Candle, "scripted" => Self::Scripted;
    EngineHost: "auto" => Self::Auto, "thread" => Self::Thread, "process" => Self::Process;
    KvType: "f16" => Self::F16, "q8_0" => Self::Q8_0, "q4_0" => Self::Q4_0;
    Priority: "interactive" => Self::Interactive, "batch" => Self::Batch;
    SwapWhen: "idle" => Self::Idle, "pays" => Self::Pays;
    Pooling: "mean" => Self::Mean, "cls" => Self::Cls, "last" => Self::Last, "none" => Self::None;
    Guesses: "off" => Self::Off, "lookup" => Self::Lookup, "draft" => Self::Draft;
    WebhookFormat: "generic" => Self::Generic, "slack" => Self::Slack;
    Strategy: "ordered" => Self::Ordered, "pyramid" => Self::Pyramid, "cheapest" => Self::Cheapest, "fastest" => Self::Fastest,
        "balanced" => Self::Balanced, "sticky" => Self::Sticky, "least_busy" => Self::LeastBusy, "weighted" => Self::Weighted;
    Flaw: "form" => Self::Form, "calls" => Self::Calls, "refusal" => Self::Refusal, "empty" => Self::Empty;
    OnLimit: "deny" => Self::Deny, "degrade" => Self::Degrade, "ask" => Self::Ask;
    OnSharedDown: "deny" => Self::Deny, "local" => Self::Local;
    ServiceTier: "flex" => Self::Flex, "priority" => Self::Priority, "batch" => Self::Batch;
}

read_text! {
    String: "a string", |text| Ok(text.to_owned());
    PathBuf: "a path", |text| if text.is_empty() { Err(", found none".to_owned()) } else { Ok(text.into()) };
    SocketAddr: "an IP address and port such as \"127.0.0.1:4000\"", |text| text.parse().map_err(|_| found(text));
    Duration: "a duration such as \"100ms\", \"30s\", \"5m\" or \"2h\", from 1ms to 24h", |text| duration(text);
    Pace: "\"off\" or a duration such as \"5s\", from 1ms to 24h", |text| match text {
        "off" => Ok(Self::Off),
        text => duration(text).map(Self::Every),
    };
    PauseTime: "\"by-hand\" or a duration such as \"30m\", from 1ms to 24h", |text| match text {
        "by-hand" => Ok(Self::ByHand),
        text => duration(text).map(Self::For),
    };
    DailyTime: "a time such as \"08:30\" (UTC) or \"08:30 Europe/Berlin\"", |text| Self::parse(text);
    Window: "\"minute\", \"hour\", \"day\", \"week\", \"month\", \"total\", or \"rolling 24h\" with any length from 1m to 31d", |text| {
        Self::parse(text).ok_or_else(|| found(text))
    };
    Clock: "a time such as \"22:00\"", |text| time_of_day(text).map(Self).ok_or_else(|| found(text));
    Zone: "a time zone such as \"Europe/Berlin\"", |text| zone_named(text).map(Self);
    Vram: "\"auto\" or a size such as \"24GiB\"", |text| match (text, parse_size(text)) {
        ("auto", _) => Ok(Self::Auto),
        (_, Some(bytes)) if bytes > 0 => Ok(Self::Bytes(bytes)),
        _ => Err(found(text)),
    };
    Keep: "\"forever\" or days such as \"400d\", at least 34", |text| {
        let days = || text.strip_suffix('d')?.parse::<u64>().ok().filter(|days| (34..=36_500).contains(days));
        match days() {
            _ if text == "forever" => Ok(Self(None)),
            Some(days) => Ok(Self(Some(Duration::from_secs(days * 86_400)))),
            None => Err(found(text)),
        }
    };
    KeptBytes: "\"off\" or a size such as \"1GiB\"", |text| match (text, parse_size(text)) {
        ("off", _) => Ok(Self(0)),
        (_, Some(bytes)) => Ok(Self(bytes)),
        _ => Err(found(text)),
    };
    Usd: "an exact decimal in USD such as \"5.00\", with at most 9 decimals", |text|
        Self::parse_decimal(text).map_err(|_| found(text));
    PicoUsd: "an exact decimal in USD per million tokens such as \"0.15\", with at most 6 decimals", |text|
        Self::parse_per_million(text).map_err(|_| found(text));
    SecretRef: "\"env:NAME\", \"file:PATH\" or the secret itself", |text| match text.split_once(':') {
        Some(("env", name)) if !name.is_empty() && !name.contains(['=', '\0']) => Ok(Self::Env(name.to_owned())),
        Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
        Some(("env" | "file", _)) => Err(", found no name after the colon".to_owned()),
        _ if text.trim().is_empty() => Err(", found nothing".to_owned()),
        _ => Ok(Self::Literal(Secret::new(text))),
    };
    Origin: "an origin such as \"https://app.example\", or \"*\"", |text| {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_origin = host.is_some_and(|host| !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && b != b'/'));
        if is_origin || text == "*" { Ok(Self(text.to_owned())) } else { Err(found(text)) }
    };
    BaseUrl: "a URL such as \"https://host/v1\"", |text| {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_url = host.is_some_and(|h| h.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '['));
        // User info in a URL would be a secret that gets logged.
        if is_url && text.bytes().all(|b| b.is_ascii_graphic() && !b"@?#".contains(&b)) {
            Ok(Self(text.trim_end_matches('/').to_owned()))
        } else {
            Err(", without user, query or fragment".to_owned())
        }
    };
    Slug: "a name of a-z, 0-9, `_`, `-` and `.`", |text| {
        if is_slug(text) { Ok(Self(text.to_owned())) } else { Err(found(text)) }
    };
    ModelName: "a name of letters, digits, `_`, `-`, `.` and `:`", |text| {
        named(text, |c| c.is_ascii_alphanumeric() || "_-.:".contains(c)).map(Self)
    };
    AliasName: "a name of letters, digits, `_`, `-`, `.`, `:` and inner `/`", |text| {
        let name = named(text, |c| c.is_ascii_alphanumeric() || "_-.:/".contains(c))?;
        if name.split('/').any(str::is_empty) { Err(found(text)) } else { Ok(Self(name)) }
    };
}

fn found(text: &str) -> String {
    format!(", found \"{text}\"")
}

fn duration(text: &str) -> Result<Duration, String> {
    let day = Duration::from_secs(24 * 3600);
    parse_duration(text).filter(|d| !d.is_zero() && *d <= day).ok_or_else(|| found(text))
}

/// Whether this can be the name of an agent, a team or a provider: 1 to 128 of a-z, 0-9, `_`, `-` and `.`.
pub fn is_slug(text: &str) -> bool {
    named(text, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c)).is_ok()
}

/// A name of at most 128 allowed characters.
fn named(text: &str, allowed: fn(char) -> bool) -> Result<String, String> {
    let fits = (1..=128).contains(&text.len()) && text.chars().all(allowed);
    if fits { Ok(text.to_owned()) } else { Err(found(text)) }
}

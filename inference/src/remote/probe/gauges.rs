//! Reads a few gauges out of Prometheus' text format, whatever else is in it.

use crate::remote::questions::GaugeNames;
use std::collections::BTreeMap;

/// Engines and models told apart in one text; a server has a few.
const MOST_SERIES: usize = 256;

/// What one text says of one model's engines together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Gauges {
    /// Requests being answered.
    pub(super) running: u32,
    /// Requests that wait.
    pub(super) waiting: u32,
    /// The fullest engine's share of the KV cache in use.
    pub(super) kv: Option<f32>,
}

/// One sample of a text.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
}

/// The gauges by model; servers without the label have one entry under `None`. A model is left out when the text does not say both how many
/// requests run and how many wait.
///
/// An engine may appear once for each of its ranks: those of one replica (`engine`, `dp_rank`) say the same, replicas add up.
pub(super) fn read(text: &str, names: &GaugeNames) -> BTreeMap<Option<String>, Gauges> {
    let mut series: BTreeMap<(Option<String>, String), [Option<f64>; 3]> = BTreeMap::new();
    for sample in text.lines().filter_map(Sample::read) {
        let place = match sample.name {
            name if name == names.running => 0,
            name if name == names.waiting => 1,
            name if names.kv.contains(&name) => 2,
            _ => continue,
        };
        let label =
            |wanted: &str| sample.labels.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.clone());
        let replica = label("dp_rank").or_else(|| label("engine")).unwrap_or_default();
        let key = (label("model_name"), replica);
        if series.len() >= MOST_SERIES && !series.contains_key(&key) {
            continue;
        }
        let known = &mut series.entry(key).or_default()[place];
        *known = Some(known.map_or(sample.value, |known| known.max(sample.value)));
    }
    let mut models: BTreeMap<Option<String>, Gauges> = BTreeMap::new();
    for ((model, _), [running, waiting, kv]) in series {
        let (Some(running), Some(waiting)) = (running, waiting) else { continue };
        let sum = models.entry(model).or_default();
        sum.running = sum.running.saturating_add(count(running));
        sum.waiting = sum.waiting.saturating_add(count(waiting));
        if let Some(kv) = kv {
            sum.kv = Some(sum.kv.unwrap_or(0.0).max(share(kv)));
        }
    }
    models
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "samples are finite and not negative")]
fn count(value: f64) -> u32 {
    value.min(f64::from(u32::MAX)) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "a share from 0 to 1")]
fn share(value: f64) -> f32 {
    value.min(1.0) as f32
}

impl<'a> Sample<'a> {
    /// Reads a line; `None` for comments, and for what is not a sample with a finite value of zero or more.
    fn read(line: &'a str) -> Option<Self> {
        let line = line.trim();
        let end = line.find(|c: char| c == '{' || c.is_ascii_whitespace())?;
        let (name, rest) = line.split_at(end);
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Vec::new(), rest),
        };
        let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
        let known = !name.is_empty() && !name.starts_with('#');
        (known && value.is_finite() && value >= 0.0).then_some(Self { name, labels, value })
    }
}

/// Labels and their values with the escapes undone.
type Labels<'a> = Vec<(&'a str, String)>;

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(Labels<'_>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after) = rest.split_once('=')?;
        let (value, after) = quoted(after.trim_start().strip_prefix('"')?)?;
        labels.push((name.trim(), value));
        rest = after;
    }
}

/// A text up to its closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::questions::{LLAMA_SERVER, SGLANG, VLLM};
    use proptest::prelude::*;

    fn names(questions: &'static crate::remote::questions::Questions) -> &'static GaugeNames {
        questions.gauges.as_ref().unwrap()
    }

    fn one(running: u32, waiting: u32, kv: Option<f32>) -> Gauges {
        Gauges { running, waiting, kv }
    }

    #[test]
    fn each_server_is_read_as_it_writes() {
        let vllm = "# HELP vllm:num_requests_running Number of requests in model execution batches.\n\
            # TYPE vllm:num_requests_running gauge\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"org/m\"} 3.0\n\
            vllm:num_requests_running{engine=\"1\",model_name=\"org/m\"} 4.0\n\
            vllm:num_requests_waiting{engine=\"0\",model_name=\"org/m\"} 2.0\n\
            vllm:num_requests_waiting{engine=\"1\",model_name=\"org/m\"} 0.0\n\
            vllm:num_requests_waiting_by_reason{engine=\"0\",model_name=\"org/m\",reason=\"capacity\"} 2.0\n\
            vllm:gpu_cache_usage_perc{engine=\"0\",model_name=\"org/m\"} 0.25\n\
            vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"org/m\"} 0.25\n\
            vllm:kv_cache_usage_perc{engine=\"1\",model_name=\"org/m\"} 0.5\n";
        let expected = BTreeMap::from([(Some("org/m".to_owned()), one(7, 2, Some(0.5)))]);
        assert_eq!(read(vllm, names(&VLLM)), expected, "engines add up, and the fullest counts");
        let old = "vllm:num_requests_running{model_name=\"m\"} 1\nvllm:num_requests_waiting{model_name=\"m\"} 0\n\
            vllm:gpu_cache_usage_perc{model_name=\"m\"} 0.125\n";
        assert_eq!(read(old, names(&VLLM))[&Some("m".to_owned())], one(1, 0, Some(0.125)));
        let sglang = "sglang:num_running_reqs{engine_type=\"unified\",model_name=\"q\",pp_rank=\"0\",tp_rank=\"0\"} 5.0\n\
            sglang:num_running_reqs{engine_type=\"unified\",model_name=\"q\",pp_rank=\"0\",tp_rank=\"1\"} 5.0\n\
            sglang:num_queue_reqs{engine_type=\"unified\",model_name=\"q\",pp_rank=\"0\",tp_rank=\"0\"} 9.0\n\
            sglang:token_usage{engine_type=\"unified\",model_name=\"q\",pp_rank=\"0\",tp_rank=\"0\"} 1.5\n";
        let expected = one(5, 9, Some(1.0));
        assert_eq!(read(sglang, names(&SGLANG))[&Some("q".to_owned())], expected, "ranks say the same");
        let llama = "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 2\n\
            llamacpp:requests_deferred 1 1395066363000\n";
        assert_eq!(read(llama, names(&LLAMA_SERVER)), BTreeMap::from([(None, one(2, 1, None))]));
    }

    #[test]
    fn what_cannot_be_meant_is_left_out() {
        for text in [
            "",
            "llamacpp:requests_processing 1",
            "llamacpp:requests_processing NaN\nllamacpp:requests_deferred 0",
            "llamacpp:requests_processing -1\nllamacpp:requests_deferred 0",
            "llamacpp:requests_processing{a=\"b 1\nllamacpp:requests_deferred 0",
            "llamacpp:requests_processing{a=b} 1\nllamacpp:requests_deferred 0",
            "<html><body>llamacpp:requests_processing</body></html>",
        ] {
            assert_eq!(read(text, names(&LLAMA_SERVER)), BTreeMap::new(), "{text}");
        }
        let much: String = (0..1000)
            .map(|n| format!("vllm:num_requests_running{{model_name=\"{n}\"}} 1\nvllm:num_requests_waiting{{model_name=\"{n}\"}} 1\n"))
            .collect();
        assert_eq!(read(&much, names(&VLLM)).len(), MOST_SERIES);
    }

    proptest! {
        #[test]
        fn no_text_is_a_crash(text in ".{0,200}") {
            read(&text, names(&VLLM));
        }

        #[test]
        fn labels_are_read_as_they_were_meant(model in "[^\r\n\u{85}\u{2028}\u{2029}]{0,40}", running in 0u32..1000, waiting in 0u32..1000) {
            let escaped = model.replace('\\', "\\\\").replace('"', "\\\"");
            let text = format!("vllm:num_requests_running{{model_name=\"{escaped}\", engine=\"0\"}} {running}\n\
                vllm:num_requests_waiting{{engine=\"0\",model_name=\"{escaped}\",}} {waiting}.0 17");
            prop_assert_eq!(read(&text, names(&VLLM)), BTreeMap::from([(Some(model), one(running, waiting, None))]));
        }
    }
}

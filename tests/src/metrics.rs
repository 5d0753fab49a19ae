//! Reads the Prometheus text format, as strictly as a scraper.

use std::collections::{BTreeMap, BTreeSet};

/// All samples of one scrape.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    samples: Vec<Sample>,
    /// Metric families by name, with their type.
    pub families: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Samples {
    /// Reads an exposition; panics at the first line that is not well formed or has no `# TYPE` before it.
    pub fn parse(text: &str) -> Self {
        let mut all = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (kind, name, rest) =
                    (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or_default());
                if kind == "TYPE" && all.families.insert(name.into(), rest.into()).is_some() {
                    panic!("the family {name} comes twice");
                }
                continue;
            }
            let sample = Sample::parse(line).unwrap_or_else(|| panic!("not a sample: {line}"));
            assert!(all.families.contains_key(&sample.family()), "no # TYPE before {line}");
            all.samples.push(sample);
        }
        all
    }

    /// The sum of a metric's samples that have these labels (and any others).
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|own| own == value))
        };
        self.samples.iter().filter(fits).map(|sample| sample.value).sum()
    }

    /// The values that a label of a metric has.
    pub fn values(&self, name: &str, label: &str) -> BTreeSet<&str> {
        let samples = self.samples.iter().filter(|sample| sample.name == name);
        samples.filter_map(|sample| sample.labels.get(label)).map(String::as_str).collect()
    }
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => (name, rest.strip_suffix('}')?),
            None => (series, ""),
        };
        // No label value of ours holds a quote or a comma followed by a name.
        let pair = |pair: &str| {
            let (label, value) = pair.split_once("=\"")?;
            Some((label.to_owned(), value.strip_suffix('"')?.to_owned()))
        };
        let labels =
            labels.split_inclusive("\",").map(|pair| pair.trim_end_matches(',')).filter(|text| !text.is_empty());
        Some(Self { name: name.into(), labels: labels.map(pair).collect::<Option<_>>()?, value: value.parse().ok()? })
    }

    fn family(&self) -> String {
        let ends = ["_bucket", "_sum", "_count"];
        let is_histogram =
            self.labels.contains_key("le") || self.name.ends_with("_sum") || self.name.ends_with("_count");
        let base = ends.iter().find_map(|end| self.name.strip_suffix(end)).filter(|_| is_histogram);
        base.unwrap_or(&self.name).to_owned()
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "small whole numbers are exact")]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_label() {
        let text = "# HELP a_total What.\n# TYPE a_total counter\na_total{x=\"1\",y=\"b, c\"} 2\na_total{x=\"2\",y=\"d\"} 3\n\
                    # TYPE h histogram\nh_bucket{le=\"+Inf\"} 4\nh_sum 1.5\nh_count 4\n# TYPE vllm:n gauge\nvllm:n 7\n";
        let samples = Samples::parse(text);
        assert_eq!(samples.sum("a_total", &[]), 5.0);
        assert_eq!(samples.sum("a_total", &[("y", "b, c")]), 2.0);
        assert_eq!(samples.sum("h_count", &[]), 4.0);
        assert_eq!(samples.sum("vllm:n", &[]), 7.0);
        assert_eq!(samples.values("a_total", "x"), BTreeSet::from(["1", "2"]));
    }

    #[test]
    #[should_panic(expected = "no # TYPE")]
    fn a_sample_without_a_type_is_refused() {
        Samples::parse("lonely 1\n");
    }
}

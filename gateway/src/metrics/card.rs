//! What the graphics card said of itself when it was last looked at.

use super::Maker;
use prometheus::GaugeVec;
use tollkeeper_inference::CardReading;

/// The series.
pub(super) struct Card {
    memory: GaugeVec,
    busy: GaugeVec,
    celsius: GaugeVec,
    watts: GaugeVec,
}

impl Card {
    pub(super) fn new(make: &Maker) -> Self {
        let card = ["card"];
        Self {
            memory: make.gauges("tollkeeper_card_memory_bytes", "Memory of the card.", &["card", "kind"]),
            busy: make.gauges("tollkeeper_card_utilisation_ratio", "Share of time in which the card computed.", &card),
            celsius: make.gauges("tollkeeper_card_temperature_celsius", "How hot the card is.", &card),
            watts: make.gauges("tollkeeper_card_power_watts", "What the card draws.", &card),
        }
    }

    /// Without a card, and for what it does not tell, there is no sample.
    #[expect(clippy::cast_precision_loss, reason = "bytes far below 2^52")]
    pub(super) fn show(&self, reading: Option<&CardReading>) {
        [&self.memory, &self.busy, &self.celsius, &self.watts].into_iter().for_each(GaugeVec::reset);
        let Some(CardReading { card, total, free, used, busy, celsius, watts, .. }) = reading else { return };
        for (kind, bytes) in [("total", total), ("free", free), ("used", used)] {
            self.memory.with_label_values(&[&**card, kind]).set(*bytes as f64);
        }
        for (series, value) in [(&self.busy, busy), (&self.celsius, celsius), (&self.watts, watts)] {
            if let Some(value) = value {
                series.with_label_values(&[&**card]).set(*value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{Encoder, Registry, TextEncoder};

    #[test]
    fn a_card_shows_what_it_tells_and_no_card_shows_nothing() {
        let make = Maker(Registry::new());
        let card = Card::new(&make);
        let text = || {
            let mut text = Vec::new();
            TextEncoder::new().encode(&make.0.gather(), &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
        };
        let reading = CardReading {
            card: "GPU-1".into(),
            total: 24,
            free: 10,
            used: 13,
            processes: None,
            busy: Some(0.5),
            celsius: Some(61.0),
            watts: None,
        };
        card.show(Some(&reading));
        let expected = [
            r#"tollkeeper_card_memory_bytes{card="GPU-1",kind="free"} 10"#,
            r#"tollkeeper_card_memory_bytes{card="GPU-1",kind="total"} 24"#,
            r#"tollkeeper_card_memory_bytes{card="GPU-1",kind="used"} 13"#,
            r#"tollkeeper_card_temperature_celsius{card="GPU-1"} 61"#,
            r#"tollkeeper_card_utilisation_ratio{card="GPU-1"} 0.5"#,
        ];
        assert_eq!(text(), expected);
        card.show(None);
        assert!(text().is_empty());
    }
}

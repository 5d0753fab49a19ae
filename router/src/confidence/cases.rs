//! Answers that are known to be good or bad, with how sure their model was of them.

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    /// The mean natural logarithm of its first tokens' probabilities.
    pub logprob: f64,
    /// The mean entropy in nats of the distributions that they were drawn from.
    pub entropy: f64,
    /// Whether it was good.
    pub good: bool,
}

/// What is wrong with a file of cases.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CasesError {
    /// A column is missing.
    #[error("line 1: there is no column `{0}`")]
    Column(&'static str),
    /// A line cannot be read.
    #[error("line {line}: {what}")]
    Row {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
}

impl Case {
    /// Reads cases from CSV with the columns `logprob`, `entropy` and `good` (0 or 1); others are left alone.
    ///
    /// # Errors
    /// A column is missing, or a line says no numbers.
    pub fn read_csv(bytes: &[u8]) -> Result<Vec<Self>, CasesError> {
        let mut reader = csv::ReaderBuilder::new().from_reader(bytes);
        let unread = |error: csv::Error| CasesError::Row {
            line: error.position().map_or(1, csv::Position::line),
            what: error.to_string(),
        };
        let header = reader.headers().map_err(unread)?.clone();
        let column = |name| header.iter().position(|title| title.trim() == name).ok_or(CasesError::Column(name));
        let (logprob, entropy, good) = (column("logprob")?, column("entropy")?, column("good")?);
        let mut cases = Vec::new();
        for record in reader.records() {
            let record = record.map_err(unread)?;
            let line = record.position().map_or(0, csv::Position::line);
            let field = |place: usize| record.get(place).unwrap_or_default().trim();
            let wrong = |name: &str, wanted: &str, found: &str| CasesError::Row {
                line,
                what: format!("`{name}` is {wanted}, not `{found}`"),
            };
            let number = |place: usize, name: &str| {
                let number = field(place).parse::<f64>().ok().filter(|number| number.is_finite());
                number.ok_or_else(|| wrong(name, "a number", field(place)))
            };
            let good = match field(good) {
                "1" | "true" => true,
                "0" | "false" => false,
                other => return Err(wrong("good", "0 or 1", other)),
            };
            cases.push(Self { logprob: number(logprob, "logprob")?, entropy: number(entropy, "entropy")?, good });
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_in_any_order_and_mistakes_are_named_with_their_line() {
        let cases = Case::read_csv(b"kind,good,entropy,logprob\nsums,1,0.5,-0.25\nsums,0,1,-2\n").unwrap();
        assert_eq!(cases[0], Case { logprob: -0.25, entropy: 0.5, good: true });
        assert!(!cases[1].good);
        let error = |text: &str| Case::read_csv(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(error("logprob,entropy\n"), "line 1: there is no column `good`");
        assert_eq!(error("logprob,entropy,good\n0,0,1\n0,x,1\n"), "line 3: `entropy` is a number, not `x`");
        assert_eq!(error("logprob,entropy,good\n0,0,maybe\n"), "line 2: `good` is 0 or 1, not `maybe`");
        assert_eq!(error("logprob,entropy,good\nNaN,0,1\n"), "line 2: `logprob` is a number, not `NaN`");
    }
}

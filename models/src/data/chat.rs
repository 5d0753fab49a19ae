//! Dialogues and the one chat format: what training sees is exactly what the template renders.

/// The Jinja template written into the GGUF file. [`Dialogue::pieces`] renders the same bytes; a test compares the two.
pub const TEMPLATE: &str = include_str!("template.jinja");

/// One turn of a dialogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// What the user says.
    User(String),
    /// What the model answers: the only text it is trained to predict.
    Assistant(String),
    /// What a tool returned.
    Tool(String),
}

/// A whole conversation.
#[derive(Clone, Debug, Default)]
pub struct Dialogue {
    /// The system message, if any.
    pub system: Option<String>,
    /// Tool definitions, each as one line of JSON.
    pub tools: Vec<String>,
    /// The turns, oldest first.
    pub turns: Vec<Turn>,
}

/// A run of text between two special tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// `<|im_start|>`
    Start,
    /// `<|im_end|>`; true when the model has to predict it.
    End(bool),
    /// Plain text; true when the model has to predict it.
    Text(String, bool),
}

impl From<(String, String)> for Dialogue {
    fn from((question, answer): (String, String)) -> Self {
        Self { turns: vec![Turn::User(question), Turn::Assistant(answer)], ..Self::default() }
    }
}

impl Dialogue {
    /// The dialogue without its last turn, and that turn's text.
    pub fn split_answer(mut self) -> (Self, String) {
        match self.turns.pop() {
            Some(Turn::Assistant(answer)) => (self, answer),
            _ => (self, String::new()),
        }
    }

    /// The pieces that the template renders; with `prompt` the opening of the next answer follows.
    pub fn pieces(&self, prompt: bool) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut message = |role: &str, text: String, learn: bool| {
            pieces.push(Piece::Start);
            pieces.push(Piece::Text(format!("{role}\n"), false));
            pieces.push(Piece::Text(text, learn));
            pieces.push(Piece::End(learn));
            pieces.push(Piece::Text("\n".to_owned(), false));
        };
        if let Some(system) = self.system_text() {
            message("system", system, false);
        }
        for turn in &self.turns {
            match turn {
                Turn::User(text) => message("user", text.clone(), false),
                Turn::Assistant(text) => message("assistant", text.clone(), true),
                Turn::Tool(text) => message("user", format!("<tool_response>\n{text}\n</tool_response>"), false),
            }
        }
        if prompt {
            pieces.push(Piece::Start);
            pieces.push(Piece::Text("assistant\n".to_owned(), false));
        }
        pieces
    }

    fn system_text(&self) -> Option<String> {
        if self.tools.is_empty() {
            return self.system.clone();
        }
        let system = self.system.as_ref().map_or_else(String::new, |text| format!("{text}\n\n"));
        Some(format!(
            "{system}# Tools\n<tools>\n{}\n</tools>\nTo call a tool, answer with its name and arguments:\n\
             <tool_call>\n{{\"name\": ..., \"arguments\": {{...}}}}\n</tool_call>",
            self.tools.join("\n")
        ))
    }

    /// The rendered text, special tokens spelt out.
    pub fn text(&self, prompt: bool) -> String {
        self.pieces(prompt)
            .into_iter()
            .map(|piece| match piece {
                Piece::Start => "<|im_start|>".to_owned(),
                Piece::End(_) => "<|im_end|>".to_owned(),
                Piece::Text(text, _) => text,
            })
            .collect()
    }
}

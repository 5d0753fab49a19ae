//! What the aliases that exist out of the box stand for, as a table to edit when models come and go.

/// The targets of `auto`: a pyramid, cheapest tier first.
pub(crate) const AUTO_TARGETS: [&str; 5] = ["local/fast", "local/quality", "cloud/fast", "cloud/mid", "cloud/frontier"];

/// The cloud aliases: (provider kind, model) in the order to try; those whose provider is configured are taken.
/// Every model is in the built-in catalogue (a test says so).
pub(crate) const CLOUD_ALIASES: &[(&str, &[(&str, &str)])] = &[
    (
        "cloud/fast",
        &[
            ("openai", "gpt-6-luna"),
            ("gemini", "gemini-3.5-flash-lite"),
            ("groq", "openai/gpt-oss-20b"),
            ("mistral", "mistral-small-latest"),
            ("deepseek", "deepseek-flash"),
            ("together", "zai-org/GLM-5.3-Flash"),
            ("fireworks", "accounts/fireworks/models/glm-5p3-flash"),
            ("cerebras", "gpt-oss-120b"),
            ("xai", "grok-4.20-non-reasoning"),
            ("perplexity", "sonar"),
        ],
    ),
    (
        "cloud/mid",
        &[
            ("openai", "gpt-6.1-terra"),
            ("gemini", "gemini-3.8-flash"),
            ("groq", "qwen/qwen3.8-27b"),
            ("deepseek", "deepseek-v4-pro"),
            ("mistral", "mistral-medium-latest"),
            ("xai", "grok-4.3"),
            ("together", "zai-org/GLM-5.3"),
            ("fireworks", "accounts/fireworks/models/glm-5p3"),
            ("cerebras", "qwen-3.8-27b"),
            ("perplexity", "sonar-pro"),
        ],
    ),
    (
        "cloud/frontier",
        &[
            ("openai", "gpt-6.1-sol"),
            ("gemini", "gemini-4-argon"),
            ("xai", "grok-4.7"),
            ("mistral", "mistral-large-4"),
            ("together", "moonshotai/Kimi-K3"),
            ("fireworks", "accounts/fireworks/models/kimi-k3"),
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::builtin;

    #[test]
    fn every_default_target_is_a_chat_model_of_the_catalogue() {
        for (kind, model) in CLOUD_ALIASES.iter().flat_map(|(_, choices)| choices.iter()) {
            let facts = builtin::of_kind(kind).find(|row| row.model == *model).map(|row| &row.facts);
            assert!(facts.is_some_and(|facts| facts.abilities.chat), "{kind}/{model}");
        }
    }
}

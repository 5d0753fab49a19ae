//! How a local model writes tool calls and reasoning, where its chat template does not tell.

use serde::{Deserialize, Serialize};

/// Declares a closed set with the name of each member in the configuration.
macro_rules! named {
    ($(#[$doc:meta])* $set:ident { $($(#[$member_doc:meta])* $member:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        pub enum $set {
            $($(#[$member_doc])* $member,)+
        }

        impl $set {
            /// Each member and its name.
            pub const NAMES: &'static [(&'static str, Self)] = &[$(($name, Self::$member)),+];

            /// Its name in the configuration.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$member => $name,)+
                }
            }
        }
    };
}

named! {
    /// How tool calls are written.
    ToolFormat {
        /// As the chat template tells.
        #[default]
        Auto = "auto",
        /// Calls are not told from text.
        None = "none",
        /// Messages in the commentary channel (gpt-oss).
        Harmony = "harmony",
        /// DeepSeek V3.1.
        DeepSeekV31 = "deepseek-v3.1",
        /// DeepSeek R1 and V3.
        DeepSeekV3 = "deepseek-v3",
        /// Mistral, Ministral and Devstral.
        Mistral = "mistral",
        /// Older models of Mistral: a list.
        MistralList = "mistral-list",
        /// Command R7B.
        CommandR7b = "command-r7b",
        /// Command R and R+.
        CommandR = "command-r",
        /// Phi-4-mini.
        Phi4 = "phi-4",
        /// Granite 3.
        Granite = "granite",
        /// Llama 3.
        Llama = "llama",
        /// Seed-OSS.
        SeedOss = "seed-oss",
        /// Qwen3-Coder, Qwen 3.5, Nemotron 3.
        Qwen3Coder = "qwen3-coder",
        /// GLM 4.5 and later.
        Glm = "glm",
        /// MiniMax-M2.
        MiniMaxM2 = "minimax-m2",
        /// Qwen 2.5 and 3, Hermes, Granite 4.
        Hermes = "hermes",
        /// Explained to the model in the system message.
        Taught = "taught",
    }
}

named! {
    /// How reasoning is written.
    ReasoningFormat {
        /// As the chat template tells.
        #[default]
        Auto = "auto",
        /// Reasoning is not told from text.
        None = "none",
        /// `<think>…</think>`.
        Think = "think",
        /// `[THINK]…[/THINK]`.
        Mistral = "mistral",
        /// `<|START_THINKING|>…<|END_THINKING|>`.
        CommandR7b = "command-r7b",
        /// `<seed:think>…</seed:think>`.
        SeedOss = "seed-oss",
    }
}

//! Cloud providers and other OpenAI-compatible servers.

//! Reads the lists of models and slots that servers send, and keeps a bounded part of them.

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, de::DeserializeOwned};
use std::marker::PhantomData;
use std::sync::Arc;

/// Models of one server that are known by name.
pub(crate) const MOST_MODELS: usize = 256;
/// The longest name of a model, in bytes.
const LONGEST_NAME: usize = 256;

/// A model that a server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) name: Arc<str>,
    /// Other names it answers to.
    aliases: Vec<String>,
    /// Whether it is in memory, where the server tells.
    pub(super) loaded: Option<bool>,
}

/// The models of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Models {
    pub(super) all: Vec<Model>,
    /// Whether these are all of them: not when there were more, or some whose names cannot be kept.
    complete: bool,
}

impl Models {
    /// Reads a list in OpenAI's form or in Ollama's; `None` when it is neither.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let list: List = serde_json::from_slice(body).ok()?;
        let entries = list.data.or(list.models)?;
        let whole = entries.whole;
        let found = entries.kept.len();
        let all: Vec<Model> = entries.kept.into_iter().filter_map(Entry::model).collect();
        Some(Self { complete: whole && all.len() == found, all })
    }

    /// Notes which models are in memory: those of this list, and no others.
    pub(super) fn mark_loaded(&mut self, loaded: &Self) {
        for model in &mut self.all {
            model.loaded = Some(loaded.has(&model.name));
        }
    }

    /// Whether a server has this model.
    pub(super) fn has(&self, name: &str) -> bool {
        self.all.iter().any(|model| model.is(name))
    }

    /// Whether a server is known not to have this model.
    pub(super) fn lacks(&self, name: &str) -> bool {
        self.complete && !self.has(name)
    }

    /// Whether the server says of its models whether they are loaded.
    pub(super) fn tell_loaded(&self) -> bool {
        self.all.iter().any(|model| model.loaded.is_some())
    }
}

impl Model {
    /// Whether it answers to this name.
    pub(super) fn is(&self, name: &str) -> bool {
        same(&self.name, name) || self.aliases.iter().any(|alias| same(alias, name))
    }
}

/// Whether a listed name and an asked one mean the same model: Ollama adds `:latest` and does not look at the case. For other servers this
/// is too lenient, which does no harm: they refuse for themselves.
pub(super) fn same(listed: &str, asked: &str) -> bool {
    let bare = |name: &str| name.strip_suffix(":latest").unwrap_or(name).to_ascii_lowercase();
    listed == asked || bare(listed) == bare(asked)
}

/// How many slots of llama-server work, and how many there are.
pub(super) fn slots(body: &[u8]) -> Option<(u32, u32)> {
    let slots: Bounded<Slot> = serde_json::from_slice(body).ok()?;
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let busy = slots.kept.iter().filter(|slot| slot.is_processing).count();
    (slots.whole && !slots.kept.is_empty()).then(|| (count(busy), count(slots.kept.len())))
}

#[derive(Deserialize)]
struct Slot {
    is_processing: bool,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    data: Option<Bounded<Entry>>,
    #[serde(default)]
    models: Option<Bounded<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    aliases: Option<Vec<String>>,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Status {
    value: String,
}

impl Entry {
    fn model(self) -> Option<Model> {
        let name = self.id.or(self.name).filter(|name| is_name(name))?;
        let aliases = self.aliases.unwrap_or_default().into_iter().filter(|alias| *alias != name);
        let aliases = aliases.take(MOST_MODELS).collect();
        Some(Model { name: name.into(), aliases, loaded: self.status.map(|status| status.value == "loaded") })
    }
}

/// Whether a name can be kept and shown.
pub(super) fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// The first [`MOST_MODELS`] items of a list.
struct Bounded<T> {
    kept: Vec<T>,
    /// Whether these are all.
    whole: bool,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for Items<T> {
            type Value = Bounded<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut bounded = Bounded { kept: Vec::new(), whole: true };
                while let Some(item) = items.next_element()? {
                    if bounded.kept.len() < MOST_MODELS {
                        bounded.kept.push(item);
                    } else {
                        bounded.whole = false;
                    }
                }
                Ok(bounded)
            }
        }
        deserializer.deserialize_seq(Items(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(models: &Models) -> Vec<(&str, Option<bool>)> {
        models.all.iter().map(|model| (&*model.name, model.loaded)).collect()
    }

    #[test]
    fn each_server_is_read_as_it_writes() {
        let vllm = br#"{"object":"list","data":[{"id":"org/m","object":"model","created":1,"owned_by":"vllm","root":"org/m","parent":null,"max_model_len":4096,"permission":[]},
            {"id":"lora","object":"model","created":1,"owned_by":"vllm","root":"/l","parent":"org/m"}]}"#;
        assert_eq!(shown(&Models::read(vllm).unwrap()), [("org/m", None), ("lora", None)]);
        let llama = br#"{"models":[{"name":"tiny","model":"tiny","capabilities":["completion"]}],"object":"list",
            "data":[{"id":"tiny","aliases":["tiny","small"],"tags":[],"object":"model","owned_by":"llamacpp","meta":null}]}"#;
        let llama = Models::read(llama).unwrap();
        assert_eq!(shown(&llama), [("tiny", None)]);
        assert!(llama.has("small") && llama.lacks("large") && !llama.tell_loaded());
        let router = br#"{"data":[{"id":"a","aliases":[],"object":"model","status":{"value":"loaded","args":["x"]}},
            {"id":"b","object":"model","status":{"value":"unloaded","args":[],"failed":true,"exit_code":1}}],"object":"list"}"#;
        let router = Models::read(router).unwrap();
        assert_eq!(shown(&router), [("a", Some(true)), ("b", Some(false))]);
        assert!(router.tell_loaded());
        let ollama = br#"{"models":[{"name":"gemma3:latest","model":"gemma3:latest","size":1,"digest":"d","details":{"format":"gguf"}},
            {"name":"Qwen3:8b","model":"Qwen3:8b"}]}"#;
        let mut ollama = Models::read(ollama).unwrap();
        ollama.mark_loaded(&Models::read(br#"{"models":[{"name":"gemma3:latest","size_vram":1}]}"#).unwrap());
        assert_eq!(shown(&ollama), [("gemma3:latest", Some(true)), ("Qwen3:8b", Some(false))]);
        assert!(ollama.has("gemma3") && ollama.has("qwen3:8B") && ollama.lacks("qwen3"));
    }

    #[test]
    fn what_is_no_list_or_too_much_of_one_refuses_nobody() {
        for body in ["", "[]", "{}", "\"x\"", r#"{"data":null}"#, r#"{"data":[1]}"#, r#"{"data":{"id":"a"}}"#] {
            assert_eq!(Models::read(body.as_bytes()), None, "{body}");
        }
        let many: Vec<_> = (0..1000).map(|n| format!("{{\"id\":\"{n}\"}}")).collect();
        let many = Models::read(format!("{{\"data\":[{}]}}", many.join(",")).as_bytes()).unwrap();
        assert_eq!((many.all.len(), many.lacks("999")), (MOST_MODELS, false));
        let odd = format!(r#"{{"data":[{{"id":"a"}},{{"id":"{}"}},{{}},{{"id":"line\nbreak"}}]}}"#, "x".repeat(1000));
        let odd = Models::read(odd.as_bytes()).unwrap();
        assert_eq!((shown(&odd), odd.lacks("b")), (vec![("a", None)], false));
    }

    #[test]
    fn slots_are_counted() {
        let two = br#"[{"id":0,"n_ctx":512,"is_processing":true,"next_token":[{"n_decoded":3}]},{"id":1,"is_processing":false}]"#;
        assert_eq!(slots(two), Some((1, 2)));
        for body in ["[]", "{}", r#"[{"id":0}]"#, r#"{"error":{"code":501}}"#] {
            assert_eq!(slots(body.as_bytes()), None, "{body}");
        }
    }
}

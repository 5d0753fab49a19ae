//! Checks `[local]` and its models.

use super::server::small;
use super::{Check, is_first};
use crate::catalog::Abilities;
use crate::file::{RawLocal, RawLocalModel};
use crate::read::At;
use crate::settings::{EngineKind, Gpu, KvCache, Local, LocalModel, LoraAdapter, Residency, Speculate, SwapRules};
use crate::value::{Guesses, Scale, Vram};
use std::collections::HashMap;
use std::sync::Arc;

impl Check<'_> {
    /// The local models, also in the order of the file.
    pub(super) fn local(&mut self, raw: RawLocal) -> (Local, Vec<Arc<LocalModel>>) {
        let mut seen = HashMap::new();
        let mut models = Vec::new();
        for raw in raw.models.value {
            let Some(name) = raw.name.clone().map(|name| name.value) else { continue };
            let what = format_args!("the local model `{}`", name.value.0);
            let first = is_first(&mut seen, &name.value.0, &name.span, what, &mut self.problems);
            match self.local_model(raw) {
                Some(model) if first => models.push(Arc::new(model)),
                Some(_) => {}
                None => drop(self.broken.insert(name.value.0)),
            }
        }
        let by_name = models.iter().map(|model: &Arc<LocalModel>| (model.name.clone(), model.clone())).collect();
        let local = Local {
            vram: bytes(raw.vram.value),
            gpu: raw.gpu.at.map_or_else(|| self.visible_card(), |gpu| gpu.value),
            swap: SwapRules {
                min_residency: raw.min_residency.value,
                drain: raw.drain.value,
                max_wait: raw.max_wait.value,
                patience: raw.patience.value,
                when: raw.swap.value,
            },
            energy: raw.energy.at.and_then(|energy| self.energy(&energy.value)),
            kv_cache: KvCache {
                memory: raw.kv_memory.value.0,
                disk: raw.kv_disk.value.0,
                folder: raw.kv_folder.at.map(|folder| self.path(&folder.value)),
            },
            models: by_name,
        };
        (local, models)
    }

    /// The card that programs of CUDA see first. An order of theirs that is not that of the bus is not known here.
    fn visible_card(&self) -> Gpu {
        let visible = (self.env)("CUDA_VISIBLE_DEVICES");
        let first = visible.as_deref().and_then(|list| Gpu::parse(list.split(',').next()?.trim()));
        first.unwrap_or_default()
    }

    fn local_model(&mut self, raw: RawLocalModel) -> Option<LocalModel> {
        let speculate = self.speculate(&raw);
        let mut abilities: Abilities = raw.abilities.value.into_iter().collect();
        if abilities.vision && raw.mmproj.at.is_none() {
            let message = "`vision` needs `mmproj`: the file of the model's projector";
            self.problems.add(&raw.abilities.span, message);
        }
        abilities.vision = raw.mmproj.at.is_some();
        if let Some(limit) = raw.max_output.at.as_ref().filter(|limit| limit.value.0 > raw.context.value.0) {
            let message = format!("`max_output` is larger than the context of {} tokens", raw.context.value.0);
            self.problems.add(&limit.span, message);
        }
        if let Some(second) = raw.lora.value.get(1) {
            let message = "a model can have one adapter; give each further one a model of its own with the same `path`";
            self.problems.add(&second.span, message);
        }
        let lora = raw.lora.value.iter().filter_map(|adapter| {
            let path = self.path(&adapter.value.path.as_ref()?.value);
            Some(LoraAdapter { path, scale: adapter.value.scale.value.0 })
        });
        let lora = lora.collect();
        let certainty = self.certainty(raw.certainty.at.as_ref());
        let price = self.price(&raw.price, None, abilities);
        Some(LocalModel {
            name: raw.name?.value.value.0,
            path: self.path(&raw.path?.value),
            engine: raw.engine.value,
            host: raw.host.value,
            context: small(raw.context.value.0),
            slots: small(raw.slots.value.0),
            queue: small(raw.queue.value.0),
            threads: raw.threads.at.map(|threads| small(threads.value.0)),
            gpu_layers: raw.gpu_layers.at.map(|layers| small(layers.value.0)),
            price: price?,
            abilities,
            max_output: raw.max_output.at.map(|limit| small(limit.value.0)),
            kv: raw.kv.value,
            fit: raw.fit.value,
            speculate: speculate?,
            residency: Residency {
                preload: raw.preload.value,
                pin: raw.pin.value,
                keep_alive: raw.keep_alive.at.map(|limit| limit.value),
                memory: bytes(raw.memory.value),
            },
            preload_at: raw.preload_at.value,
            pooling: raw.pooling.at.map(|pooling| pooling.value),
            mmproj: raw.mmproj.at.map(|file| self.path(&file.value)),
            lora,
            tool_format: raw.tool_format.value,
            reasoning_format: raw.reasoning_format.value,
            certainty,
        })
    }

    /// The three numbers of a curve.
    fn certainty(&mut self, raw: Option<&At<Vec<At<Scale>>>>) -> Option<[f32; 3]> {
        let at = raw?;
        let numbers: Vec<f32> = at.value.iter().map(|number| number.value.0).collect();
        let curve = <[f32; 3]>::try_from(numbers).ok();
        if curve.is_none() {
            self.problems.add(&at.span, "`certainty` has three numbers, as `tollkeeper route certainty` prints them");
        }
        curve
    }

    /// How tokens are guessed: a draft and the wish for one belong together.
    fn speculate(&mut self, raw: &RawLocalModel) -> Option<Speculate> {
        match (&raw.draft.at, raw.speculate.value) {
            (None, Guesses::Off) => return Some(Speculate::Off),
            (None, Guesses::Lookup) => return Some(Speculate::Lookup),
            (Some(draft), Guesses::Draft) if raw.engine.value != EngineKind::Candle => {
                return Some(Speculate::Draft(self.path(&draft.value)));
            }
            (Some(_), Guesses::Draft) => {
                let message = "the candle engine cannot check a draft's guesses; use `engine = \"llama.cpp\"`";
                self.problems.add(&raw.speculate.span, message);
            }
            (Some(draft), _) => {
                self.problems
                    .add(&draft.span, "`draft` is used by `speculate = \"draft\"` only; add it, or leave `draft` out");
            }
            // A path that was written wrong has been reported.
            (None, Guesses::Draft) if !raw.draft.written => {
                let message =
                    "`speculate = \"draft\"` needs `draft`: the GGUF file of a smaller model with the same vocabulary";
                self.problems.add(&raw.speculate.span, message);
            }
            (None, Guesses::Draft) => {}
        }
        None
    }
}

fn bytes(size: Vram) -> Option<u64> {
    match size {
        Vram::Auto => None,
        Vram::Bytes(bytes) => Some(bytes),
    }
}

//! A vision model's projector, by llama.cpp's `mtmd`: it turns a picture into rows that the model reads like words.

use super::super::engine::{EngineError, LoadError};
use super::super::gguf::Header;
use super::super::model_file::check_gguf;
use super::super::picture::Picture;
use super::{LlamaContext, LlamaModel, load};
use llama_cpp_2::mtmd::{
    MtmdBitmap, MtmdContext, MtmdContextParams, MtmdEvalError, MtmdInputChunks, MtmdInputText, mtmd_default_marker,
};
use std::collections::VecDeque;
use std::path::Path;

/// Pictures that are kept prepared between being measured and being shown.
const PREPARED: usize = 4;
/// Projectors that prepare a picture differently by what stands before it, which nobody knows when it is measured.
const UNSUPPORTED: [&str; 2] = ["deepseek4v", "hunyuanvl"];

/// A loaded projector.
pub(super) struct Projector {
    mtmd: MtmdContext,
    prepared: VecDeque<([u8; 32], MtmdInputChunks)>,
}

impl Projector {
    /// Loads the projector that belongs to a model; also says the bytes that it takes.
    pub(super) fn load(path: &Path, model: &LlamaModel, threads: i32, gpu: bool) -> Result<(Self, u64), LoadError> {
        let named = |LoadError(why)| LoadError(format!("its projector {} cannot be used: {why}", path.display()));
        check_gguf(path).map_err(named)?;
        let header = Header::read(path).map_err(|error| named(LoadError(error.to_string())))?;
        let kind = ["clip.vision.projector_type", "clip.projector_type"].iter().find_map(|key| header.text(key));
        if let Some(kind) = kind.filter(|kind| UNSUPPORTED.contains(kind)) {
            return Err(named(LoadError(format!("projectors of the type `{kind}` are not supported"))));
        }
        let file = path.to_str().ok_or_else(|| named(LoadError("its path is not UTF-8".into())))?;
        let params = MtmdContextParams {
            use_gpu: gpu,
            print_timings: false,
            n_threads: threads,
            ..MtmdContextParams::default()
        };
        let loaded = load(path, "loading it", || MtmdContext::init_from_file(file, model, &params));
        let (mtmd, buffers) = loaded.map_err(named)?;
        if !mtmd.support_vision() {
            return Err(named(LoadError("it is not made for pictures".into())));
        }
        let weights: u64 = header.tensors.iter().map(|(_, bytes)| bytes).sum();
        Ok((Self { mtmd, prepared: VecDeque::new() }, weights.saturating_add(buffers)))
    }

    /// The tokens and the positions that a picture takes. `batch` is the most rows that the model reads at once.
    pub(super) fn measure(&mut self, picture: &Picture, batch: u32) -> Result<(u32, u32), EngineError> {
        let sees_all = self.mtmd.decode_use_non_causal();
        let chunks = self.prepare(picture)?;
        let parts = (0..chunks.len()).filter_map(|at| chunks.get(at));
        let longest = parts.map(|part| part.n_tokens()).max().unwrap_or(0);
        if sees_all && longest > batch as usize {
            return Err(EngineError::Unfit(format!(
                "this model has to read it in one piece of {longest} tokens, and {batch} are the most; send it smaller"
            )));
        }
        match (u32::try_from(chunks.total_tokens()), u32::try_from(chunks.total_positions())) {
            (Ok(tokens), Ok(positions)) if (1..=tokens).contains(&positions) => Ok((tokens, positions)),
            (tokens, positions) => Err(EngineError::Unfit(format!(
                "its projector makes {tokens:?} tokens and {positions:?} positions of it, which makes no sense"
            ))),
        }
    }

    /// Encodes a picture, and lets the model read it behind the positions that the sequence has.
    pub(super) fn show(
        &mut self,
        picture: &Picture,
        context: &mut LlamaContext<'_>,
        sequence: u32,
        position: u32,
        batch: u32,
    ) -> Result<(), EngineError> {
        self.prepare(picture)?;
        let Self { mtmd, prepared } = self;
        let Some((_, chunks)) = prepared.back() else { return Err(EngineError::Broken("no picture".into())) };
        match chunks.eval_chunks(mtmd, context, position as i32, sequence as i32, batch as i32, false) {
            Ok(_) => Ok(()),
            // What the encoder says when it fails, and llama.cpp when there is no room; but there is room for all tokens of all sequences.
            Err(MtmdEvalError::EvalFailure(1)) => {
                Err(EngineError::Unfit(format!("llama.cpp could not encode {picture:?}")))
            }
            Err(error) => Err(EngineError::Broken(format!("llama.cpp could not read {picture:?}: {error}"))),
        }
    }

    /// The picture as the encoder wants it; it is the last in the list then.
    fn prepare(&mut self, picture: &Picture) -> Result<&MtmdInputChunks, EngineError> {
        let at = self.prepared.iter().position(|(hash, _)| hash == picture.hash());
        let prepared = match at.and_then(|at| self.prepared.remove(at)) {
            Some(prepared) => prepared,
            None => (*picture.hash(), self.tokenize(picture).map_err(EngineError::Unfit)?),
        };
        if self.prepared.len() >= PREPARED {
            self.prepared.pop_front();
        }
        self.prepared.push_back(prepared);
        self.prepared.back().map(|(_, chunks)| chunks).ok_or_else(|| EngineError::Broken("no picture".into()))
    }

    fn tokenize(&self, picture: &Picture) -> Result<MtmdInputChunks, String> {
        let bitmap = MtmdBitmap::from_image_data(picture.width(), picture.height(), picture.rgb());
        let bitmap = bitmap.map_err(|error| error.to_string())?;
        // The text is the marker alone: what the client wrote is never tokenised here.
        let text = MtmdInputText { text: mtmd_default_marker().to_owned(), add_special: false, parse_special: false };
        self.mtmd
            .tokenize(text, &[&bitmap])
            .map_err(|error| format!("the model's projector cannot prepare {picture:?}: {error}"))
    }
}

//! The projector of builds that cannot see: there is none.

use super::super::engine::{EngineError, LoadError};
use super::super::picture::Picture;
use super::{LlamaContext, LlamaModel};
use std::path::Path;

/// No projector.
pub(super) enum Projector {}

impl Projector {
    pub(super) fn load(_: &Path, _: &LlamaModel, _: i32, _: bool) -> Result<(Self, u64), LoadError> {
        Err(LoadError("this build cannot see pictures (`mmproj`); build with `--features vision`".into()))
    }

    pub(super) fn measure(&mut self, _: &Picture, _: u32) -> Result<(u32, u32), EngineError> {
        match *self {}
    }

    pub(super) fn show(
        &mut self,
        _: &Picture,
        _: &mut LlamaContext<'_>,
        _: u32,
        _: u32,
        _: u32,
    ) -> Result<(), EngineError> {
        match *self {}
    }
}

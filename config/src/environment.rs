//! What is read from this process's environment besides secrets of the configuration: what processes of engines get, and which gateway the
//! command line talks to.

use crate::units::Secret;
use std::ffi::OsString;

/// Variables that are passed on.
const NAMES: [&str; 11] = [
    "PATH",
    "HOME",
    "USER",
    "TMPDIR",
    "TZ",
    "LANG",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "RUST_BACKTRACE",
    "XDG_CACHE_HOME",
    "XDG_RUNTIME_DIR",
];
/// Variables whose names begin so are passed on.
const FAMILIES: [&str; 13] =
    ["LC_", "CUDA_", "NVIDIA_", "CUBLAS_", "GGML_", "LLAMA_", "OMP_", "GOMP_", "KMP_", "VK_", "MESA_", "HIP_", "ROCR_"];
/// What names of secrets end in; no family makes up for that.
const SECRET: [&str; 5] = ["KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIALS"];

/// Which gateway an operator's command line talks to, and what opens it.
#[derive(Debug, Clone, Default)]
pub struct Operators {
    /// `TOLLKEEPER_URL`.
    pub url: Option<String>,
    /// `TOLLKEEPER_ADMIN_KEY`.
    pub admin_key: Option<Secret>,
}

/// What this process's environment says of that; empty variables say nothing.
#[expect(clippy::disallowed_methods, reason = "this crate reads the environment for all")]
pub fn of_operators() -> Operators {
    let read = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    Operators { url: read("TOLLKEEPER_URL"), admin_key: read("TOLLKEEPER_ADMIN_KEY").map(Secret::new) }
}

/// The secret that an argument of the command line names as the configuration would: "env:NAME", "file:PATH" or itself.
///
/// # Errors
/// There is no such variable or file, or it is empty.
#[expect(clippy::disallowed_methods, reason = "this crate reads the environment for all")]
pub fn secret(text: &str) -> Result<Secret, String> {
    let found = match text.split_once(':') {
        Some(("env", name)) => {
            std::env::var(name).map_err(|_| format!("the environment variable {name} is not set"))?
        }
        Some(("file", path)) => {
            std::fs::read_to_string(path).map_err(|cause| format!("cannot read the file {path}: {cause}"))?
        }
        _ => text.to_owned(),
    };
    let found = found.trim();
    if found.is_empty() { Err(format!("{text} is empty")) } else { Ok(Secret::new(found)) }
}

/// The part of this process's environment that an engine in a process of its own may see. API keys of providers and agents are no part
/// of it, whatever the configuration calls their variables: only names of a fixed list are passed on.
pub fn of_engines() -> Vec<(OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_passed_on)).collect()
}

fn is_passed_on(name: &str) -> bool {
    let listed = NAMES.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family));
    listed && !SECRET.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_see_what_they_need_and_no_key() {
        for name in ["PATH", "LD_LIBRARY_PATH", "LC_ALL", "CUDA_VISIBLE_DEVICES", "GGML_CUDA_ENABLE_UNIFIED_MEMORY"] {
            assert!(is_passed_on(name), "{name}");
        }
        for name in
            ["OPENAI_API_KEY", "NVIDIA_API_KEY", "LLAMA_API_KEY", "GGML_TOKEN", "PATHS", "TOLLKEEPER_ADMIN_KEY", ""]
        {
            assert!(!is_passed_on(name), "{name}");
        }
    }
}

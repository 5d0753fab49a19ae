//! NVIDIA's management library, which tells what the cards have without opening a context on them: the only file that calls it.
//!
//! The library comes with the driver and is opened at run time. Where there is none, there is no card.

use super::card::{CardReading, Look};
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use std::collections::BTreeMap;
use std::os::linux::fs::MetadataExt;
use std::sync::Arc;
use tollkeeper_config::Gpu;

/// The inode of the namespace of processes that a machine starts with; the kernel promises it.
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFC;

/// The card that the configuration means, and how to look at it.
pub(crate) fn open(gpu: &Gpu) -> Option<Look> {
    let nvml = Nvml::init().inspect_err(|error| tracing::debug!(%error, "no NVIDIA driver")).ok()?;
    let named = match gpu {
        Gpu::Index(index) => nvml.device_by_index(*index).and_then(|device| device.uuid()),
        Gpu::Uuid(uuid) => nvml.device_by_uuid(uuid.as_str()).map(|_| uuid.clone()),
    };
    let unusable = |error: &NvmlError| {
        tracing::error!(%gpu, %error, "the card cannot be asked for its memory; `local.gpu` names it");
    };
    let uuid: Arc<str> = named.inspect_err(unusable).ok()?.into();
    // Elsewhere the processes of the list may not be those that have these numbers here.
    let knows_processes = std::fs::metadata("/proc/self/ns/pid").is_ok_and(|file| file.st_ino() == FIRST_NAMESPACE);
    Some(Box::new(move || {
        let device = nvml.device_by_uuid(&*uuid).ok()?;
        read(&device, &uuid, knows_processes)
            .inspect_err(|error| tracing::debug!(%error, "the card does not answer"))
            .ok()
    }))
}

fn read(device: &Device<'_>, uuid: &Arc<str>, knows_processes: bool) -> Result<CardReading, NvmlError> {
    // What a process takes or gives back between two questions must not count twice.
    let before = knows_processes.then(|| processes(device)).flatten();
    let memory = device.memory_info()?;
    let after = knows_processes.then(|| processes(device)).flatten();
    let least = |(before, after): (BTreeMap<u32, u64>, BTreeMap<u32, u64>)| {
        before.into_iter().filter_map(|(pid, bytes)| Some((pid, bytes.min(*after.get(&pid)?)))).collect()
    };
    Ok(CardReading {
        card: uuid.clone(),
        total: memory.total,
        free: memory.free,
        used: memory.used,
        processes: before.zip(after).map(least),
        busy: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
        celsius: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
        watts: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1000.0),
    })
}

/// Bytes by process; `None` where the driver does not tell all of them.
fn processes(device: &Device<'_>) -> Option<BTreeMap<u32, u64>> {
    let lists = [device.running_compute_processes().ok()?, device.running_graphics_processes().unwrap_or_default()];
    let mut held: BTreeMap<u32, u64> = BTreeMap::new();
    for process in lists.into_iter().flatten() {
        let UsedGpuMemory::Used(bytes) = process.used_gpu_memory else { return None };
        // Who computes and draws is in both lists, with the same bytes.
        let known = held.entry(process.pid).or_default();
        *known = bytes.max(*known);
    }
    Some(held)
}

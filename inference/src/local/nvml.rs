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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
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
    let joules = Joules::default();
    Some(Box::new(move || {
        let device = nvml.device_by_uuid(&*uuid).ok()?;
        read(&device, &uuid, knows_processes, &joules)
            .inspect_err(|error| tracing::debug!(%error, "the card does not answer"))
            .ok()
    }))
}

/// What a card counted of the energy that it used. Its mean says more of the work of two seconds than what it draws at one moment.
#[derive(Default)]
struct Joules(Mutex<Option<Counted>>);

/// The last look at the counter.
#[derive(Clone, Copy)]
struct Counted {
    at: Instant,
    millijoules: u64,
    watts: Option<f64>,
}

impl Joules {
    /// Shorter than this is nothing to divide by: the counter moves in steps.
    const SHORTEST: Duration = Duration::from_millis(500);

    /// The mean since the look before; `None` at the first one, and when the counter began anew.
    fn watts(&self, at: Instant, millijoules: u64) -> Option<f64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = *last
            && at.saturating_duration_since(last.at) < Self::SHORTEST
        {
            return last.watts;
        }
        let mean = |last: Counted| {
            let used = millijoules.checked_sub(last.millijoules)?;
            Some(used as f64 / 1000.0 / at.saturating_duration_since(last.at).as_secs_f64())
        };
        let watts = last.and_then(mean);
        *last = Some(Counted { at, millijoules, watts });
        watts
    }
}

fn read(
    device: &Device<'_>,
    uuid: &Arc<str>,
    knows_processes: bool,
    joules: &Joules,
) -> Result<CardReading, NvmlError> {
    // What a process takes or gives back between two questions must not count twice.
    let before = knows_processes.then(|| processes(device)).flatten();
    let memory = device.memory_info()?;
    let after = knows_processes.then(|| processes(device)).flatten();
    let least = |(before, after): (BTreeMap<u32, u64>, BTreeMap<u32, u64>)| {
        before.into_iter().filter_map(|(pid, bytes)| Some((pid, bytes.min(*after.get(&pid)?)))).collect()
    };
    let mean = device.total_energy_consumption().ok().and_then(|counted| joules.watts(Instant::now(), counted));
    let now = || device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1000.0);
    Ok(CardReading {
        card: uuid.clone(),
        total: memory.total,
        free: memory.free,
        used: memory.used,
        processes: before.zip(after).map(least),
        busy: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
        celsius: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
        watts: mean.or_else(now),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_draws_in_the_mean_what_it_counted_since_the_last_look() {
        let (joules, start) = (Joules::default(), Instant::now());
        let look = |millis, millijoules| joules.watts(start + Duration::from_millis(millis), millijoules);
        assert_eq!(look(0, 5_000_000), None);
        assert_eq!(look(2000, 5_700_000), Some(350.0), "700 J in two seconds");
        assert_eq!(look(2010, 5_700_000), Some(350.0), "too soon to say anything else");
        assert_eq!(look(4000, 5_900_000), Some(100.0));
        assert_eq!(look(6000, 0), None, "the driver was loaded anew");
        assert_eq!(look(8000, 600_000), Some(300.0));
    }
}

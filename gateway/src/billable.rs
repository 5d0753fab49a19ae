//! In which ways a request may be billed, by what it says: a lease need not cover sound that cannot come.

use tollkeeper_config::Billable;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::passthrough::mentions;
use tollkeeper_protocol::usage::ServiceTier;

/// Looks for the words without which there is no sound and no long cache. One that only stands in a text counts too: then
/// more is leased than needed, and what is charged is the same. A request that names no tariff may be billed by any: the
/// account at the provider decides.
pub(crate) fn of(request: &Request, body: &[u8]) -> Billable {
    Billable {
        audio_input: mentions(body, "input_audio"),
        audio_output: mentions(body, "\"audio\""),
        long_cache: mentions(body, "\"1h\""),
        tier: match request.service_tier() {
            Some("flex") => Some(ServiceTier::Flex),
            Some("default" | "standard" | "standard_only" | "on_demand") => Some(ServiceTier::Standard),
            _ => None,
        },
    }
}

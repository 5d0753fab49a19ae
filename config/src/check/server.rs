//! Checks `[server]`.

use super::Check;
use crate::file::RawServer;
use crate::settings::{Server, Tls};

impl Check<'_> {
    pub(super) fn server(&mut self, raw: RawServer) -> Server {
        let admin_key = raw.admin_key.at.as_ref().and_then(|key| self.key("the operator (`admin_key`)", key));
        if raw.metrics_need_key.value && !raw.admin_key.written {
            let message = "`metrics_need_key` needs `admin_key`: without one nobody could read /metrics";
            self.problems.add(&raw.metrics_need_key.span, message);
        }
        if let Some(at) = raw.admin_listen.at.as_ref() {
            if !raw.admin_key.written {
                self.problems.add(&at.span, "`admin_listen` needs `admin_key`: without one nobody could use it");
            }
            if at.value == raw.listen.value && at.value.port() != 0 {
                self.problems
                    .add(&at.span, "`admin_listen` is the address of `listen`; leave it out or choose another");
            }
        }
        let tls = raw.tls.at.and_then(|tls| {
            Some(Tls { cert: self.path(&tls.value.cert?.value), key: self.path(&tls.value.key?.value) })
        });
        Server {
            listen: raw.listen.value,
            admin_listen: raw.admin_listen.at.map(|at| at.value),
            tls,
            admin_key,
            // At most 1 GiB: it fits.
            body_limit: usize::try_from(raw.body_limit.value.0).unwrap_or(usize::MAX),
            header_timeout: raw.header_timeout.value,
            body_timeout: raw.body_timeout.value,
            request_timeout: raw.request_timeout.value,
            unread_timeout: raw.unread_timeout.value,
            max_in_flight: small(raw.max_in_flight.value.0) as usize,
            max_connections: small(raw.max_connections.value.0) as usize,
            drain_timeout: raw.drain_timeout.value,
            cors_origins: raw.cors_origins.value.into_iter().map(|origin| origin.0).collect(),
            budget_status: raw.budget_status.value.0,
            metrics_need_key: raw.metrics_need_key.value,
        }
    }
}

/// A number whose limits in `file.rs` are below those of `u32`.
pub(super) fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

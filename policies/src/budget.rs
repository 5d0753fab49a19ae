//! Caps per calendar window.

use jiff::Timestamp;
use tollkeeper_config::{Usd, Window};

/// One budget as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetView {
    /// The window.
    pub window: Window,
    /// The cap.
    pub limit: Usd,
    /// Settled in this window.
    pub spent: Usd,
    /// Leased in this window by requests in flight.
    pub reserved: Usd,
    /// What can still be leased; never below zero.
    pub remaining: Usd,
    /// When the window ends; `None` for a total.
    pub resets_at: Option<Timestamp>,
}

/// The name of a window in configuration files, errors and metrics.
pub fn window_name(window: Window) -> &'static str {
    match window {
        Window::Minute => "minute",
        Window::Hour => "hour",
        Window::Day => "day",
        Window::Week => "week",
        Window::Month => "month",
        Window::Total => "total",
    }
}

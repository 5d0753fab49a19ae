//! The meter of a request that waits for its answer: when the client leaves meanwhile, a provider's whole answer is waited for without it.

use crate::app::App;
use crate::cut::cut;
use crate::meter::Meter;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};
use tollkeeper_policies::Caller;

/// Holds a meter. Dropped while a provider works on a whole answer, it has the meter wait for that: in a task of its own, with the request's
/// place among those in flight, and no longer than the request might have taken, or than its caller may ask.
pub(crate) struct Held {
    app: Arc<App>,
    caller: Caller,
    deadline: Instant,
    meter: Option<Meter>,
}

impl Held {
    pub(crate) fn new(app: &Arc<App>, caller: Caller, deadline: Instant, meter: Meter) -> Self {
        Self { app: app.clone(), caller, deadline, meter: Some(meter) }
    }

    /// The meter, for somebody who will not leave it alone with a provider.
    pub(crate) fn release(mut self) -> Meter {
        self.meter.take().expect("nobody else takes it")
    }
}

impl Deref for Held {
    type Target = Meter;

    fn deref(&self) -> &Meter {
        self.meter.as_ref().expect("it is there until the end")
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Meter {
        self.meter.as_mut().expect("it is there until the end")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(meter) = self.meter.take().filter(Meter::is_pending) else { return };
        // Without a runtime nothing can be waited for, and dropping the meter charges what was leased.
        let (Ok(runtime), false) = (Handle::try_current(), std::thread::panicking()) else { return };
        let (deadline, enough, cut) = (self.deadline, self.app.enough.clone(), cut(&self.app, &self.caller));
        let waiting = meter.outlive(async move {
            tokio::select! {
                () = sleep_until(deadline) => {}
                () = enough.cancelled() => {}
                _ = cut => {}
            }
        });
        self.app.abandoned.spawn_on(waiting, &runtime);
    }
}

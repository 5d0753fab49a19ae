//! What is learnt of a backend by using it: requests in flight, time to the first token, and a breaker that never opens forever.

//! The scripted upstream as a program: prints its port, plays the script that the model's name asks for, shows its books at `/_count`.
#![expect(clippy::print_stdout, reason = "its only output is its port")]

use tollkeeper_tests::upstream::Upstream;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let upstream = Upstream::by_model_name().await;
    println!("{}", upstream.addr().port());
    std::future::pending().await
}

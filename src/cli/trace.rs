//! What libraries say of their work.

/// Sends traces to stderr where somebody asked for them, and nowhere else.
pub(crate) fn start(debug: bool) {
    use tracing_subscriber::EnvFilter;
    let filter = match std::env::var("PLYFS_LOG") {
        Ok(filter) if !filter.is_empty() => filter,
        _ if debug => "debug".to_owned(),
        _ => return,
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter)).with_writer(std::io::stderr).finish();
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        super::fail::note("traces go where they went before");
    }
}

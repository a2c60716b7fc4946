//! The metrics over HTTP.
//!
//! A thread of its own answers, so that no client takes time from the thread that serves guards. It
//! asks that one for the metrics at most once a second, however many ask. A connection is for one
//! request, and ends after some seconds.

#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    convert::Infallible,
    io,
    rc::Rc,
    thread,
    time::Duration,
};

use freezer_guard::guard::chain;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use mediatype::{MediaTypeList, Name, ReadParams as _, names};
use prometheus_client::encoding::prometheus_text;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    runtime::Runtime,
    sync::{Mutex, mpsc, oneshot},
    task::{AbortHandle, LocalSet, spawn_local},
    time::{Instant, sleep, timeout},
};
use tracing::warn;

use super::{
    Daemon,
    error::{Error, Result},
    listen::Listener,
    metrics::Page,
};

/// How many connections there may be. Of more, the oldest is closed that has not asked yet.
const CONNECTIONS: usize = 64;
/// How long a connection may last.
const TIME: Duration = Duration::from_secs(10);
/// How long the request's line and headers may be, bytes.
const HEADERS: usize = 8 * 1024;
/// How long the service may take to count.
const COUNTING: Duration = Duration::from_secs(5);
/// How long an answer serves all who ask.
const FRESH: Duration = Duration::from_secs(1);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answered with the metrics; the reason why there are none is in the log.
type Question = oneshot::Sender<Option<Page>>;
/// The metrics, or what to say instead.
type Answer = Result<Rc<Page>, &'static str>;

/// Answers scrapes from these sockets from now on.
///
/// # Errors
/// When there can be no thread for it.
pub(super) fn begin(daemon: &Rc<Daemon>, listeners: Vec<Listener>) -> Result<()> {
    if listeners.is_empty() {
        return Ok(());
    }
    let (questions, asked) = mpsc::unbounded_channel();
    spawn_local(answer(daemon.clone(), asked));
    start(listeners, questions).map_err(Error::io("serve metrics over HTTP"))
}

/// Answers questions with counts, one after the other.
async fn answer(daemon: Rc<Daemon>, mut asked: mpsc::UnboundedReceiver<Question>) {
    let mut failed = String::new();
    while let Some(question) = asked.recv().await {
        if question.is_closed() {
            continue;
        }
        let page = daemon.metrics().await.map_err(|error| chain(&error));
        let failure = page.as_ref().err().cloned().unwrap_or_default();
        if failure != failed && !failure.is_empty() {
            warn!("a scrape gets no metrics: {failure}");
        }
        failed = failure;
        // It may not wait any more.
        let _ = question.send(page.ok());
    }
}

fn start(listeners: Vec<Listener>, questions: mpsc::UnboundedSender<Question>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listeners = {
        let _inside = runtime.enter();
        let listeners = listeners.into_iter().map(Listening::try_from);
        listeners.collect::<io::Result<Vec<_>>>()?
    };
    let builder = thread::Builder::new().name("metrics".to_owned());
    builder.spawn(move || serve(&runtime, listeners, questions))?;
    Ok(())
}

fn serve(runtime: &Runtime, listeners: Vec<Listening>, questions: mpsc::UnboundedSender<Question>) {
    LocalSet::new().block_on(runtime, async {
        let server = Rc::new(Server {
            questions,
            last: Mutex::default(),
            connections: RefCell::default(),
        });
        let accepting = listeners.into_iter();
        let accepting = accepting.map(|listener| spawn_local(server.clone().accept(listener)));
        for task in accepting.collect::<Vec<_>>() {
            // It accepts for ever.
            let _ = task.await;
        }
    });
}

/// Where bytes come from and go to.
trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A [`Listener`] that the thread waits for.
enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl TryFrom<Listener> for Listening {
    type Error = io::Error;

    fn try_from(listener: Listener) -> io::Result<Self> {
        Ok(match listener {
            Listener::Tcp(listener) => Self::Tcp(TcpListener::from_std(listener)?),
            Listener::Unix(listener) => Self::Unix(UnixListener::from_std(listener)?),
        })
    }
}

impl Listening {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// A connection.
struct Connection {
    task: AbortHandle,
    /// Whether its request has come.
    has_asked: Rc<Cell<bool>>,
}

/// What all connections share.
struct Server {
    questions: mpsc::UnboundedSender<Question>,
    /// The last answer, and its time.
    last: Mutex<Option<(Instant, Answer)>>,
    /// The oldest first.
    connections: RefCell<VecDeque<Connection>>,
}

impl Server {
    async fn accept(self: Rc<Self>, listener: Listening) {
        loop {
            match listener.accept().await {
                Ok(stream) => self.begin(stream),
                Err(error) => {
                    warn!("cannot accept a scrape: {error}");
                    // Descriptors may have run out: some will be free again.
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Serves one more connection. If there are too many, silent ones give way: they would keep out
    /// those who ask.
    fn begin(self: &Rc<Self>, stream: Box<dyn Stream>) {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| !connection.task.is_finished());
        if connections.len() >= CONNECTIONS {
            let silent = connections.iter().position(|other| !other.has_asked.get());
            match silent.and_then(|silent| connections.remove(silent)) {
                Some(silent) => silent.task.abort(),
                // This one is closed.
                None => return,
            }
        }
        let has_asked = Rc::new(Cell::new(false));
        let serving = spawn_local(self.clone().serve(stream, has_asked.clone()));
        connections.push_back(Connection {
            task: serving.abort_handle(),
            has_asked,
        });
    }

    async fn serve(self: Rc<Self>, stream: Box<dyn Stream>, has_asked: Rc<Cell<bool>>) {
        let service = service_fn(|request| {
            has_asked.set(true);
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(&request).await) }
        });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .half_close(true)
            .max_buf_size(HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        // A client that breaks off, or takes too long, harms nobody.
        let _ = timeout(TIME, connection).await;
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/metrics" {
            return say(StatusCode::NOT_FOUND, "there is only /metrics\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = say(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD\n");
            let methods = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, methods);
            return response;
        }
        match self.page().await {
            Ok(page) if prefers_open_metrics(request.headers()) => {
                text(OPEN_METRICS, page.open_metrics.clone())
            }
            Ok(page) => text(prometheus_text::CONTENT_TYPE, page.prometheus.clone()),
            Err(reason) => say(StatusCode::SERVICE_UNAVAILABLE, reason),
        }
    }

    /// The metrics, at most [`FRESH`] old.
    async fn page(&self) -> Answer {
        let mut last = self.last.lock().await;
        if let Some((time, answer)) = &*last
            && time.elapsed() < FRESH
        {
            return answer.clone();
        }
        let (question, answer) = oneshot::channel();
        // It ends after us.
        let _ = self.questions.send(question);
        let answer = match timeout(COUNTING, answer).await {
            Ok(Ok(Some(page))) => Ok(Rc::new(page)),
            Ok(Ok(None) | Err(_)) => Err("there are no metrics now: see the journal\n"),
            Err(_) => Err("the service is busy: try again\n"),
        };
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

fn say(status: StatusCode, words: &'static str) -> Response<Full<Bytes>> {
    let mut response = text("text/plain; charset=utf-8", words);
    *response.status_mut() = status;
    response
}

fn text(kind: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Whether a client reads OpenMetrics 1.0, and not less gladly than Prometheus's text format. All
/// others get that one, which everything reads.
fn prefers_open_metrics(headers: &HeaderMap) -> bool {
    let quality = |kind: Name<'_>, subtype: Name<'_>, version: &str| {
        let fields = headers.get_all(ACCEPT).into_iter();
        let ranges = fields
            .filter_map(|field| field.to_str().ok())
            .flat_map(|field| MediaTypeList::new(field).flatten());
        let wanted = ranges.filter(|range| {
            let other = Name::new("version").and_then(|name| range.get_param(name));
            range.ty == kind
                && range.subty == subtype
                && other.is_none_or(|other| other.as_str() == version)
        });
        let qualities = wanted.map(|range| match range.get_param(names::Q) {
            Some(quality) => quality.as_str().parse().unwrap_or(0.0),
            None => 1.0,
        });
        qualities.fold(0.0, f32::max)
    };
    let Some(open_metrics) = Name::new("openmetrics-text") else {
        return false;
    };
    let open_metrics = quality(names::APPLICATION, open_metrics, "1.0.0");
    open_metrics > 0.0 && open_metrics >= quality(names::TEXT, names::PLAIN, "0.0.4")
}

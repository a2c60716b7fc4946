//! Scrapes over real sockets, and clients that do not behave.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{super::listen::Address, *};

/// A server whose service counts how often it is asked.
struct Service {
    address: SocketAddr,
    asked: Arc<AtomicU64>,
}

impl Service {
    /// `answer`: what the service says the nth time.
    fn start(answer: fn(u64) -> Option<Page>) -> Self {
        let address = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = Listener::bind(&address).expect("a port");
        let Listener::Tcp(tcp) = &listener else {
            panic!("it is TCP")
        };
        let address = tcp.local_addr().expect("it has one");
        let asked = Self::answer(vec![listener], answer);
        Self { address, asked }
    }

    fn answer(listeners: Vec<Listener>, answer: fn(u64) -> Option<Page>) -> Arc<AtomicU64> {
        let (questions, mut asked) = mpsc::unbounded_channel::<Question>();
        start(listeners, questions).expect("it starts");
        let count = Arc::new(AtomicU64::new(0));
        let counted = count.clone();
        thread::spawn(move || {
            while let Some(question) = asked.blocking_recv() {
                let number = counted.fetch_add(1, Ordering::Relaxed) + 1;
                let _ = question.send(answer(number));
            }
        });
        count
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        let _ = stream.set_read_timeout(Some(2 * TIME));
        stream
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).expect("it reads");
        rest(&mut stream)
    }

    fn get(&self, headers: &str) -> String {
        self.ask(&format!(
            "GET /metrics HTTP/1.1\r\nHost: a\r\n{headers}\r\n"
        ))
    }
}

/// All that the server sends until it closes the connection.
fn rest(stream: &mut impl io::Read) -> String {
    let mut text = Vec::new();
    // It may reset the connection.
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn page(number: u64) -> Option<Page> {
    Some(Page {
        prometheus: format!("prometheus {number}\n"),
        open_metrics: format!("open {number}\n# EOF\n"),
        levels: [None; 4],
    })
}

#[test]
fn a_scrape_gets_the_metrics_and_no_more() {
    let service = Service::start(page);
    let text = service.get("");
    let (head, body) = text.split_once("\r\n\r\n").expect("it has a body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(body, "prometheus 1\n");
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
        ("GET /metrics/ HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
        ("GET /metrics?a=b HTTP/1.0\r\n\r\n", "200"),
        (
            "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            "405",
        ),
        ("DELETE /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "405"),
        ("GET /metrics HTTP/3.7\r\n\r\n", "400"),
        ("\0\0\0\0\r\n\r\n", "400"),
    ] {
        let text = service.ask(request);
        let version = text.split(' ').nth(1);
        assert_eq!(version, Some(status), "{request:?}: {text}");
    }
    let long = service.get(&format!("A: {}\r\n", "x".repeat(100_000)));
    assert!(
        long.is_empty() || long.starts_with("HTTP/1.1 431 "),
        "{long}"
    );
    let head = service.ask("HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(
        head.contains("content-length: ") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    // The second request of a connection is not answered.
    let twice = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2);
    assert_eq!(service.ask(&twice).matches("HTTP/1.1 200").count(), 1);
}

#[test]
fn a_unix_socket_answers_as_well() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("metrics");
    let listener = Listener::bind(&Address::Unix(path.clone())).expect("it is free");
    Service::answer(vec![listener], page);
    let mut stream = UnixStream::connect(path).expect("it listens");
    stream
        .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
        .expect("it reads");
    // As some clients do.
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("it is open");
    assert!(rest(&mut stream).ends_with("\r\n\r\nprometheus 1\n"));
}

#[test]
fn a_client_gets_the_format_that_it_prefers() {
    for (accept, open_metrics) in [
        ("", false),
        ("*/*", false),
        ("text/html,application/xhtml+xml,*/*;q=0.8", false),
        ("application/openmetrics-text", true),
        (
            "Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8",
            true,
        ),
        ("application/openmetrics-text; version=0.0.1", false),
        ("application/openmetrics-text;q=0", false),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.3", false),
        ("application/openmetrics-text;q=x", false),
        (",,;;=", false),
        // Prometheus 2.40.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            true,
        ),
        // Prometheus 3.
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            true,
        ),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        assert_eq!(prefers_open_metrics(&headers), open_metrics, "{accept}");
    }
    let service = Service::start(page);
    let text = service.get("Accept: application/openmetrics-text\r\n");
    assert!(
        text.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{text}"
    );
    assert!(text.ends_with("\r\n\r\nopen 1\n# EOF\n"), "{text}");
}

#[test]
fn many_scrapes_ask_the_service_once() {
    let service = Service::start(page);
    let start = Instant::now();
    for _ in 0..200 {
        assert!(service.get("").contains("prometheus"));
    }
    let most = start.elapsed().as_secs() + 1;
    assert!(service.asked.load(Ordering::Relaxed) <= most);
}

#[test]
fn a_service_that_cannot_count_is_told_from_one_that_is_not_there() {
    let service = Service::start(|number| (number > 1).then(|| page(number))?);
    assert!(service.get("").starts_with("HTTP/1.1 503 "));
    thread::sleep(FRESH);
    assert!(service.get("").starts_with("HTTP/1.1 200 "));
}

/// The service has other work: a scrape does not wait for ever, and the next one succeeds.
#[test]
fn a_busy_service_is_not_waited_for() {
    let service = Service::start(|number| {
        if number == 1 {
            thread::sleep(COUNTING + FRESH);
        }
        page(number)
    });
    let start = Instant::now();
    assert!(service.get("").starts_with("HTTP/1.1 503 "));
    assert!(start.elapsed() < TIME);
    thread::sleep(2 * FRESH);
    assert!(service.get("").starts_with("HTTP/1.1 200 "));
}

#[test]
fn silent_connections_keep_nobody_out() {
    let service = Service::start(page);
    let silent: Vec<_> = (0..500)
        .map(|number| {
            let mut stream = service.connect();
            if number % 2 == 0 {
                let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost:");
            }
            stream
        })
        .collect();
    let start = Instant::now();
    for _ in 0..10 {
        assert!(service.get("").starts_with("HTTP/1.1 200 "));
    }
    assert!(start.elapsed() < TIME / 2, "{:?}", start.elapsed());
    // Those in excess are closed at once, the others in time.
    for mut stream in silent {
        assert_eq!(rest(&mut stream), "");
    }
    assert!(start.elapsed() < TIME + TIME / 2, "{:?}", start.elapsed());
}

/// A byte now and then does not keep a connection.
#[test]
fn a_slow_client_has_its_time() {
    let service = Service::start(page);
    let mut stream = service.connect();
    let start = Instant::now();
    while stream.write_all(b"GET /metrics HTTP/1.1\r\n").is_ok() || start.elapsed() < TIME / 2 {
        assert!(start.elapsed() < 2 * TIME, "it is served for ever");
        thread::sleep(Duration::from_millis(100));
    }
}

//! A headless Chromium, driven by chromedriver.

use std::{fs, sync::Arc};

use antre_testkit::processes::Process;
use async_trait::async_trait;
use axum::http::{Request, Response};
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::{
    ChromiumLikeCapabilities, DesiredCapabilities, LoggingPrefsLogLevel, WebDriver,
    error::{WebDriverError, WebDriverResult},
    session::http::{Body, HttpClient},
};
use tokio::process::Command;

use super::wait::eventually;

/// How a page is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Light,
    Dark,
    /// A light page, 400 pixels wide.
    Phone,
}

/// It ends with the test. The fields are dropped in this order: first the browser, then what drives it.
pub(crate) struct Browser {
    driver: WebDriver,
    chromedriver: Process,
    _directory: TempDir,
}

impl Browser {
    pub(crate) async fn open(look: Look) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("chromedriver");
        command.arg("--port=0");
        let chromedriver = Process::start("chromedriver", command, directory.path());
        let chromedriver =
            chromedriver.expect("this test needs Chromium: apt-get install chromium chromium-driver");
        let output = directory.path().join("chromedriver.out");
        let port = eventually("chromedriver does not start", async || {
            let text = fs::read_to_string(&output).unwrap();
            let (_, rest) = text.split_once("started successfully on port ")?;
            Some(rest.split_once('.')?.0.to_owned())
        });
        let url = format!("http://127.0.0.1:{}", port.await);

        let mut chromium = DesiredCapabilities::chrome();
        let profile = format!("--user-data-dir={}", directory.path().join("profile").display());
        for argument in [
            "--headless=new",
            "--no-sandbox", // root has none
            "--disable-gpu",
            "--hide-scrollbars",
            "--window-size=1280,1000",
            // Nothing from another host: a page that needs it fails here.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            &profile,
        ] {
            chromium.add_arg(argument).unwrap();
        }
        if look == Look::Dark {
            chromium.add_arg("--blink-settings=preferredColorScheme=0").unwrap();
        }
        if look == Look::Phone {
            let metrics = json!({"deviceMetrics": {"width": 400, "height": 800, "pixelRatio": 1.0}});
            chromium.add_experimental_option("mobileEmulation", metrics).unwrap();
        }
        chromium.set_browser_log_level(LoggingPrefsLogLevel::All).unwrap();
        let driver = WebDriver::builder(url, chromium).client(Http::new()).await.unwrap();
        Self { driver, chromedriver, _directory: directory }
    }

    /// Runs a script in the page and returns what it returns.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.driver.execute(script, Vec::new()).await.unwrap().json().clone()
    }

    /// The text of the element that this selector names.
    pub(crate) async fn text(&self, selector: &str) -> Option<String> {
        let script = format!("return document.querySelector({})?.textContent.trim()", json!(selector));
        self.run(&script).await.as_str().map(str::to_owned)
    }

    /// Waits until the element has this text.
    pub(crate) async fn shows(&self, selector: &str, text: &str) {
        let mut last = None;
        eventually(&format!("{selector} does not become {text}"), async || {
            last = self.text(selector).await;
            (last.as_deref() == Some(text)).then_some(())
        })
        .await;
    }

    /// Nothing is written to the console, and everything came from the host of the page.
    pub(crate) async fn assert_is_quiet(&self) {
        let log = self.driver.browser_log().await.unwrap();
        let problems: Vec<_> = log.iter().filter(|entry| entry.level != "DEBUG").collect();
        assert!(problems.is_empty(), "{problems:?}");
        let others = "return performance.getEntriesByType('resource').map(entry => entry.name)
            .filter(name => new URL(name).host !== location.host)";
        assert_eq!(self.run(others).await, json!([]));
    }

    /// The private memory of the processes that render pages, in MiB.
    pub(crate) fn renderer_mib(&self) -> u64 {
        let mut family = vec![self.chromedriver.pid().unwrap()];
        let mut at = 0;
        while let Some(process) = family.get(at) {
            // Each thread has children of its own.
            let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
            let children = threads.map(|thread| fs::read_to_string(thread.path().join("children")));
            let children: String = children.map(Result::unwrap_or_default).collect();
            family.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            at += 1;
        }
        let is_renderer = |process: &&u32| {
            let line = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
            line.contains("--type=renderer") && !line.contains("--extension-process")
        };
        let private_kib = |process: &u32| {
            let map = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
            let lines = map.lines().filter(|line| line.starts_with("Private_"));
            lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>()
        };
        family.iter().filter(is_renderer).map(private_kib).sum::<u64>() / 1024
    }
}

impl std::ops::Deref for Browser {
    type Target = WebDriver;

    fn deref(&self) -> &WebDriver {
        &self.driver
    }
}

/// The requests to chromedriver.
struct Http(reqwest::Client);

impl Http {
    fn new() -> Self {
        Self(reqwest::Client::builder().no_proxy().build().unwrap())
    }
}

#[async_trait]
impl HttpClient for Http {
    async fn send(&self, request: Request<Body<'_>>) -> WebDriverResult<Response<Bytes>> {
        let failed = |error: reqwest::Error| WebDriverError::RequestFailed(error.to_string());
        let (parts, body) = request.into_parts();
        let mut own = self.0.request(parts.method, parts.uri.to_string()).headers(parts.headers);
        if let Body::Json(json) = body {
            own = own.json(json);
        }
        let answer = own.send().await.map_err(failed)?;
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        *response.body_mut() = answer.bytes().await.map_err(failed)?;
        Ok(response)
    }

    async fn new(&self) -> Arc<dyn HttpClient> {
        Arc::new(Self::new())
    }
}

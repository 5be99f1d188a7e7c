//! The style, the script and the icon of the dashboard.

use std::sync::LazyLock;

use crate::http::asset::Asset;

/// By the name below `/dashboard/`.
static FILES: LazyLock<[(&str, Asset); 3]> = LazyLock::new(|| {
    [
        ("page.css", Asset::new("text/css; charset=utf-8", include_bytes!("page.css"))),
        ("page.js", Asset::new("text/javascript; charset=utf-8", include_bytes!("page.js"))),
        ("icon.svg", Asset::new("image/svg+xml", include_bytes!("icon.svg"))),
    ]
});

pub(super) fn file(name: &str) -> Option<&'static Asset> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, file)| file)
}

/// The URL of a file, from a page whose root is `root`.
pub(super) fn href(root: &str, name: &str) -> Option<String> {
    file(name).map(|file| file.href(&format!("{root}dashboard/{name}")))
}

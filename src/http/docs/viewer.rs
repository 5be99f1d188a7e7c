//! `/docs`: the contract in Swagger UI, which comes with the binary. No file is from another host, so it works offline.

use std::{
    io::{Cursor, Read},
    sync::LazyLock,
};

use axum::{
    body::Bytes,
    extract::Path,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use maud::{DOCTYPE, html};
use zip::{CompressionMethod, ZipArchive, result::ZipError};

use crate::http::{asset::Asset, envelope::ApiError, page::page};

/// The files, by the name below `/docs/`.
static FILES: LazyLock<Result<Vec<(&'static str, Asset)>, ZipError>> = LazyLock::new(|| {
    Ok(vec![
        ("swagger-ui.css", vendored("text/css; charset=utf-8", "swagger-ui.css")?),
        ("swagger-ui-bundle.js", vendored("text/javascript; charset=utf-8", "swagger-ui-bundle.js")?),
        ("viewer.css", Asset::new("text/css; charset=utf-8", include_bytes!("viewer.css"))),
        ("viewer.js", Asset::new("text/javascript; charset=utf-8", include_bytes!("viewer.js"))),
        ("icon.svg", Asset::new("image/svg+xml", include_bytes!("../dashboard/icon.svg"))),
    ])
});

fn files() -> Result<&'static [(&'static str, Asset)], ApiError> {
    FILES
        .as_deref()
        .map_err(|error| ApiError::internal(format_args!("the viewer cannot be unpacked: {error}")))
}

/// `GET /docs`
pub(in crate::http) async fn show() -> Result<Response, ApiError> {
    let files = files()?;
    let href = |wanted: &str| {
        // Relative, so that it is right behind a proxy that adds a prefix.
        files.iter().find(|(name, _)| *name == wanted).map(|(name, file)| file.href(&format!("docs/{name}")))
    };
    Ok(page(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "antre: the API" }
                link rel="icon" href=[href("icon.svg")];
                @for name in ["swagger-ui.css", "viewer.css"] {
                    link rel="stylesheet" href=[href(name)];
                }
                @for name in ["swagger-ui-bundle.js", "viewer.js"] {
                    script src=[href(name)] defer {}
                }
            }
            body {
                header {
                    a href="./" { "antre" }
                    nav aria-label="More" {
                        a href="./" { "Dashboard" }
                        a href="apispec.json" { "apispec.json" }
                    }
                }
                main id="viewer" data-contract="apispec.json" {
                    noscript { p { "The viewer needs JavaScript. The contract itself: " a href="apispec.json" { "apispec.json" } } }
                }
            }
        }
    }))
}

/// `GET /docs/`: the links of the page are those of `/docs`. Relative, as they are.
pub(in crate::http) async fn without_slash() -> Response {
    (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, "../docs")]).into_response()
}

/// `GET /docs/{file}`
pub(in crate::http) async fn file(
    Path(name): Path<String>,
    uri: Uri,
    request: HeaderMap,
) -> Result<Response, ApiError> {
    let found = files()?.iter().find(|(file, _)| *file == name);
    let (_, file) = found.ok_or_else(|| ApiError::route_not_found(uri.path()))?;
    Ok(file.answer(&request, uri.query()))
}

/// A file of the vendored archive. Its compressed bytes are those of gzip, apart from head and tail, so they need no
/// compressing.
fn vendored(content_type: &'static str, name: &str) -> Result<Asset, ZipError> {
    let mut archive = ZipArchive::new(Cursor::new(utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED))?;
    let end = format!("/dist/{name}");
    let path = archive.file_names().find_map(|path| path.ok().filter(|path| path.ends_with(&end)));
    let path = path.ok_or(ZipError::FileNotFound)?.into_owned();
    let index = archive.index_for_name(&path).ok_or(ZipError::FileNotFound)?;

    let mut plain = Vec::new();
    let mut file = archive.by_index(index)?;
    file.read_to_end(&mut plain)?;
    let (method, checksum) = (file.compression(), file.crc32());
    drop(file);
    if method != CompressionMethod::Deflated {
        return Err(ZipError::UnsupportedArchive("its files are not deflated"));
    }
    // RFC 1952: magic, method 8 (deflate), no flags, no time, no extra flags, unknown system.
    let mut zipped = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    archive.by_index_raw(index)?.read_to_end(&mut zipped)?;
    zipped.extend_from_slice(&checksum.to_le_bytes());
    zipped.extend_from_slice(&(plain.len() as u32).to_le_bytes()); // modulo 2^32, says the RFC
    Ok(Asset::compressed(content_type, Bytes::from(plain), Bytes::from(zipped)))
}

#[cfg(test)]
mod tests {
    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn the_files_of_the_viewer_are_there_and_unpack() {
        let files = files().unwrap();
        assert_eq!(files.len(), 5);
        for (name, file) in files {
            let (plain, zipped) = file.bytes();
            let mut unpacked = Vec::new();
            GzDecoder::new(zipped.unwrap()).read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == plain && !plain.is_empty(), "{name}");
        }
    }
}

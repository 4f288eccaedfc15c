//! JPEG and PNG files to 8-bit RGB, as PIL's `convert("RGB")` makes it: grey is repeated, alpha dropped (what is under
//! transparent pixels shows), a palette looked up, 16 bits cut to the upper 8, CMYK taken for Adobe's inverted one. Colour
//! profiles, gamma and EXIF orientation are ignored, as torchvision's loader does.
//!
//! The decoders are strict: a damaged or truncated file is an error, where PIL shows what it can of a damaged JPEG.

use super::files::most_inflated;
use std::io::Cursor;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Most pixels of an image: 16,384 x 8,192. ImageNet's largest has 61 million.
const MAX_PIXELS: usize = 1 << 27;

/// An RGB image: three planes, one after the other.
pub(super) struct Rgb {
    pub h: usize,
    pub w: usize,
    pub planes: Vec<u8>,
}

/// Decodes a file, told by its content.
pub(super) fn decode(file: &[u8]) -> Result<Rgb, String> {
    match file {
        [0xFF, 0xD8, 0xFF, ..] => jpeg(file),
        [0x89, b'P', b'N', b'G', ..] => png(file),
        [] => Err("an empty file, wanted JPEG or PNG".into()),
        _ => {
            let begins: String = file.iter().take(4).map(|b| format!("{b:02x}")).collect();
            Err(format!("neither JPEG nor PNG (it begins with {begins})"))
        }
    }
}

/// Pixels of `w` x `h`, if the file can hold them.
fn checked(w: usize, h: usize, most: usize) -> Result<usize, String> {
    let pixels = w.checked_mul(h).filter(|&p| p <= MAX_PIXELS);
    let pixels = pixels.ok_or_else(|| format!("{w} x {h} pixels: at most {MAX_PIXELS} are supported"))?;
    match pixels {
        0 => Err(format!("{w} x {h} pixels: empty")),
        p if p > most => Err(format!("its header claims {w} x {h} pixels, more than its bytes can hold")),
        p => Ok(p),
    }
}

fn jpeg(file: &[u8]) -> Result<Rgb, String> {
    let fault =
        |e: zune_jpeg::errors::DecodeErrors| format!("damaged, truncated or unsupported JPEG: {}", one_line(&e));
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers().map_err(fault)?;
    let (w, h) = decoder.dimensions().ok_or("JPEG without a size")?;
    // A block of 8 x 8 luminance values takes at least a bit.
    let pixels = checked(w, h, file.len().saturating_mul(512))?;
    let mut rgb = vec![0; 3 * pixels];
    decoder.decode_into(&mut rgb).map_err(fault)?;
    // Even a strict decoder does not miss the end, if all blocks are there; PIL does.
    if !file.windows(2).rev().any(|marker| marker == [0xFF, 0xD9]) {
        return Err("truncated JPEG: it has no end-of-image marker".into());
    }
    Ok(planar(w, h, &rgb, 3, [0, 1, 2]))
}

fn png(file: &[u8]) -> Result<Rgb, String> {
    let fault = |e: png::DecodingError| format!("damaged, truncated or unsupported PNG: {}", one_line(&e));
    let mut decoder = png::Decoder::new(Cursor::new(file));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(fault)?;
    let (w, h) = (reader.info().width as usize, reader.info().height as usize);
    // A pixel takes at least a bit before compression.
    let pixels = checked(w, h, most_inflated(file.len()).saturating_mul(8))?;
    let samples = reader.output_color_type().0.samples();
    let mut data = vec![0; reader.output_buffer_size().ok_or("too many pixels")?];
    reader.next_frame(&mut data).map_err(fault)?;
    reader.finish().map_err(fault)?;
    data.truncate(pixels * samples);
    Ok(planar(w, h, &data, samples, if samples < 3 { [0; 3] } else { [0, 1, 2] }))
}

/// Planes `from` of interleaved samples.
fn planar(w: usize, h: usize, data: &[u8], samples: usize, from: [usize; 3]) -> Rgb {
    let planes = from.iter().flat_map(|&s| data[s..].iter().step_by(samples).copied()).collect();
    Rgb { h, w, planes }
}

fn one_line(e: &impl std::fmt::Display) -> String {
    e.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

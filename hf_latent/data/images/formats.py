"""The image formats that are read: many of Pillow's, NumPy's, and HEIC with pillow-heif."""

from PIL import Image

ENDINGS = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
    *(".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico"),
}
HEIF_ENDINGS = {".heic", ".heif", ".hif"}
try:
    from pillow_heif import register_heif_opener
except ImportError:
    pass
else:
    register_heif_opener()
    ENDINGS |= HEIF_ENDINGS
# Other formats are not opened, whatever a file's name: Pillow would run Ghostscript on EPS.
_FORMAT_OF = Image.registered_extensions()
FORMATS = [name for name in Image.ID if name in {_FORMAT_OF.get(ending) for ending in ENDINGS}]
ENDINGS |= {".npy"}  # see `measured.py`

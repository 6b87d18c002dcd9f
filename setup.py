"Metadata out of settings.ini, and the bundled data as a package; everything else is in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

config = ConfigParser(delimiters=["="], interpolation=None)
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

def lines(key): return [line for line in settings[key].splitlines() if line.strip()]

setup(
    version=settings["version"],
    description=settings["description"],
    author=settings["author"],
    keywords=settings["keywords"].split(),
    classifiers=[f"Intended Audience :: {settings['audience']}", "Programming Language :: Python :: 3 :: Only", "Typing :: Typed"],
    install_requires=lines("requirements"),
    # the tests open the site in a browser, so they need what builds it, and let the real clients talk to a server of their own
    extras_require={"dev": [line for key in ("dev", "docs", "llm", "review", "topics", "int8", "flag")
                            for line in lines(f"{key}_requirements")],
                    **{key: lines(f"{key}_requirements") for key in ("docs", "llm", "review", "topics", "int8", "flag", "gpu")}},
    entry_points={"console_scripts": lines("console_scripts")},
    # data/ stays at the top of the repository, and is importlib.resources.files("rag_finetune.bundled") once installed
    packages=["rag_finetune", "rag_finetune.bundled"],
    package_dir={"rag_finetune": "rag_finetune", "rag_finetune.bundled": "data"},
    package_data={"rag_finetune": ["py.typed", "*.jinja", "launch/*.py"],
                  "rag_finetune.bundled": [f"**/*.{kind}" for kind in ("jsonl", "json", "tsv", "csv", "md")]},
)

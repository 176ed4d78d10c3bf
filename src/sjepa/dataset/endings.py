"""File extensions of audio files and of known companion files."""


def _endings(text: str) -> frozenset[str]:
    return frozenset(f".{ending}" for ending in text.split())


# decoded by libsndfile (most of the first line) or FFmpeg
AUDIO = _endings("""
    wav flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64 sph nist voc
    m4a m4b mp4 m4v mov 3gp 3g2 aac webm mka mkv avi flv ts mts m2ts mpg mpeg mp2 mpga wma wmv asf
    amr awb ac3 eac3 dts wv tta ape tak mpc ra rm gsm spx ogv ogm ogx dsf
""")
# companion files that are ignored silently: labels, texts, images
KNOWN_OTHERS = _endings("""
    txt md json jsonl tsv csv xml yaml yml html pdf lab textgrid eaf srt vtt ctm stm trn phn wrd log
    npy npz pt h5 gzindex jpg jpeg png py sh
""")


def is_hidden(name: str) -> bool:
    """Whether to ignore a file: dotfiles and macOS resource forks, which keep audio extensions."""
    return name.rsplit("/", 1)[-1].startswith(".") or "__MACOSX/" in name

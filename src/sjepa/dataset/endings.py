"""Endings of file names: which files are clips."""


def _endings(text: str) -> frozenset[str]:
    return frozenset(f".{ending}" for ending in text.split())


# read by libsndfile, most of the first line, and by FFmpeg
AUDIO = _endings("""
    wav flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64 sph nist voc
    m4a m4b mp4 m4v mov 3gp 3g2 aac webm mka mkv avi flv ts mts m2ts mpg mpeg mp2 mpga wma wmv asf
    amr awb ac3 eac3 dts wv tta ape tak mpc ra rm gsm spx ogv ogm ogx dsf
""")
# what lies beside recordings and is no loss: labels, texts, pictures
KNOWN_OTHERS = _endings("""
    txt md json jsonl tsv csv xml yaml yml html pdf lab textgrid eaf srt vtt ctm stm trn phn wrd log
    npy npz pt h5 gzindex jpg jpeg png py sh
""")


def is_hidden(name: str) -> bool:
    """Resource forks are, which carry the endings of what they describe."""
    return name.rsplit("/", 1)[-1].startswith(".") or "__MACOSX/" in name

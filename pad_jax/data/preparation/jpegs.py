"""Images as ImageNet stores them: JPEGs whose bytes are kept, but for the few that are none or have no RGB."""

import io

from PIL import Image

from pad_jax.data.decoding import open_image
from pad_jax.errors import BadInput

_END = b'\xff\xd9'
QUALITY = 100  # as TFDS


def as_rgb_jpeg(content: bytes, place: str) -> bytes:
    """The bytes of an RGB or grey JPEG as they are; CMYK and PNG (23 files of ImageNet) as an RGB JPEG, as TFDS does.

    TFDS knows those by a list of names. The content tells the same, of any file.

    Args:
        place: where they come from, for the message.

    Raises:
        BadInput: it is neither JPEG nor PNG, is damaged or cut short.
    """
    try:
        with open_image(io.BytesIO(content), ('JPEG', 'PNG')) as image:
            # Not `== 'JPEG'`: one that holds a second picture, for the other eye, is an 'MPO' to Pillow.
            if image.format != 'PNG' and image.mode in ('RGB', 'L'):
                # Decoding takes a hundred times longer than reading: only what does not end as it should is decoded.
                if not content.endswith(_END):
                    image.load()
                return content
            converted = io.BytesIO()
            image.convert('RGB').save(converted, 'JPEG', quality=QUALITY)
            return converted.getvalue()
    except Exception as error:  # Damaged files raise almost anything: OSError, SyntaxError, struct.error, ...
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = 'neither JPEG nor PNG' if unknown else ' '.join(str(error).split()) or type(error).__name__
        raise BadInput(f'{place} cannot be read as an image: {reason}') from error

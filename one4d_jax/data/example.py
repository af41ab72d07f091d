"""The bytes of a ``tf.train.Example`` without TensorFlow: {name: bytes} there and back.

TFDS stores a tensor of ``encoding='bytes'``, and a text, as a list of one byte string. Only that is written and read
here; the messages are those of TensorFlow's ``example.proto`` and ``feature.proto``, without the lists of numbers.
"""

from collections.abc import Mapping

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from one4d_jax.errors import DataError

_FIELD = descriptor_pb2.FieldDescriptorProto
_ONE, _MANY = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED
_MESSAGES = {  # name -> fields, numbered from 1; a map is a list of pairs on the wire
  'BytesList': (('value', _MANY, bytes),),
  'Feature': (('bytes_list', _ONE, 'BytesList'),),
  'Pair': (('key', _ONE, str), ('value', _ONE, 'Feature')),
  'Features': (('feature', _MANY, 'Pair'),),
  'Example': (('features', _ONE, 'Features'),),
}


def pack(values: Mapping[str, bytes]) -> bytes:
  """The serialised example of these features."""
  example = _Example()
  for name, value in values.items():
    example.features.feature.add(key=name).value.bytes_list.value.append(value)
  return example.SerializeToString()


def unpack(data: bytes) -> dict[str, bytes]:
  """Inverse of ``pack``. Raises DataError where the bytes are no such example."""
  try:
    pairs = _Example.FromString(data).features.feature
    return {pair.key: pair.value.bytes_list.value[0] for pair in pairs}
  except (DecodeError, IndexError) as error:
    raise DataError(f'not a serialised example: {error}') from error


def _example_class() -> type:
  file = descriptor_pb2.FileDescriptorProto(name='example.proto', package='example', syntax='proto3')
  for name, fields in _MESSAGES.items():
    message = file.message_type.add(name=name)
    for number, (field, label, kind) in enumerate(fields, 1):
      basic = {bytes: _FIELD.TYPE_BYTES, str: _FIELD.TYPE_STRING}.get(kind)
      typed = {'type': basic} if basic else {'type': _FIELD.TYPE_MESSAGE, 'type_name': f'.example.{kind}'}
      message.field.add(name=field, number=number, label=label, **typed)
  pool = descriptor_pool.DescriptorPool()  # of our own: TFDS registers the full messages in the common one
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName('example.Example'))


_Example = _example_class()

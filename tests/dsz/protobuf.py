"""protobuf's own classes of the messages in `deepsz_caffe.dsz.layout`, by its own library."""

from types import SimpleNamespace

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from deepsz_caffe.dsz.layout import Header, Packing
from deepsz_caffe.dsz.message import wire_fields

_Type = descriptor_pb2.FieldDescriptorProto


def _describe(message, file, done):
    if message in done:
        return
    done.add(message)
    described = file.message_type.add(name=message.__name__)
    for field in wire_fields(message):
        added = described.field.add(name=field.name, number=field.number)
        added.label = _Type.LABEL_REPEATED if field.repeated else _Type.LABEL_OPTIONAL
        if isinstance(field.kind, type):
            _describe(field.kind, file, done)
            added.type = _Type.TYPE_MESSAGE
            added.type_name = f".deepsz.{field.kind.__name__}"
        elif field.kind == "enum":
            added.type, added.type_name = _Type.TYPE_ENUM, ".deepsz.Packing"
        else:
            added.type = getattr(_Type, f"TYPE_{field.kind.upper()}")


def _classes():
    file = descriptor_pb2.FileDescriptorProto(name="dsz", package="deepsz", syntax="proto3")
    packing = file.enum_type.add(name="Packing")
    for value in Packing:
        packing.value.add(name=value.name, number=value)
    _describe(Header, file, set())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"deepsz.{message.name}")
        )
        for message in file.message_type
    }


#: protobuf's class of each message, under its name
pb = SimpleNamespace(**_classes())

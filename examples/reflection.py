"""Calls a server with nothing at hand but its address: it describes itself (gRPC reflection). JSON in, JSON out.

Takes grpcurl's arguments and does the same, to show what a program in any language can do without the protos:

python examples/reflection.py -plaintext ADDRESS list
python examples/reflection.py -plaintext ADDRESS describe fxtrace.v1.TraceService
python examples/reflection.py -plaintext -d '{"model": "models/reference"}' ADDRESS fxtrace.v1.TraceService/CreateTrace
"""

import argparse
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(usage="%(prog)s [-plaintext] [-d JSON] ADDRESS [list | describe NAME | METHOD]")
    parser.add_argument("-plaintext", action="store_true", help="without TLS")
    parser.add_argument("-d", dest="request", default="{}", metavar="JSON")
    parser.add_argument("address")
    parser.add_argument("command")
    parser.add_argument("name", nargs="?", default="")
    given = parser.parse_args()
    channel = (
        grpc.insecure_channel(given.address)
        if given.plaintext
        else grpc.secure_channel(given.address, grpc.ssl_channel_credentials())
    )
    with channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        match given.command:
            case "list":
                print(*sorted(database.get_services()), sep="\n")
            case "describe":
                file, name = pool.FindFileContainingSymbol(given.name), given.name.rpartition(".")[2]
                service = file.services_by_name.get(name)
                print(described_service(service) if service else described_message(file.message_types_by_name[name]))
            case path:
                service_name, _, name = path.partition("/")
                call(channel, pool.FindServiceByName(service_name).FindMethodByName(name), given.request, pool)


def call(channel: grpc.Channel, method: MethodDescriptor, text: str, pool: DescriptorPool) -> None:
    """Makes one call, and prints each reply as it comes."""
    request: Any = json_format.Parse(text, GetMessageClass(method.input_type)(), descriptor_pool=pool)
    prepare: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    replies = prepare(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )(request)
    for reply in replies if method.server_streaming else [replies]:
        print(json_format.MessageToJson(reply, descriptor_pool=pool))


def described_service(service: ServiceDescriptor) -> str:
    """A service as a proto would have it."""
    calls = (
        f"  rpc {m.name} ( .{m.input_type.full_name} ) returns ( {'stream ' * m.server_streaming}"
        f".{m.output_type.full_name} );"
        for m in service.methods
    )
    return "\n".join((f"service {service.name} {{", *calls, "}"))


def described_message(message: Descriptor) -> str:
    """A message as a proto would have it."""
    fields = (f"  {'repeated ' * f.is_repeated}{_type(f)} {f.name} = {f.number};" for f in message.fields)
    return "\n".join((f"message {message.name} {{", *fields, "}"))


def _type(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    return f".{named.full_name}" if named else _SCALARS[field.type]


_SCALARS = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in (
        *("double", "float", "int32", "int64", "uint32", "uint64", "sint32", "sint64"),
        *("fixed32", "fixed64", "sfixed32", "sfixed64", "bool", "string", "bytes"),
    )
}

if __name__ == "__main__":
    main()

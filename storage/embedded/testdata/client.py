"""What a Python client does with the embedded server. Any failure is an exception.

usage: client.py ENDPOINT ACCESS_KEY SECRET_KEY
"""
import hashlib
import io
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

ENDPOINT, ACCESS_KEY, SECRET_KEY = sys.argv[1:]


def client(access_key=ACCESS_KEY, secret_key=SECRET_KEY, **config):
    return boto3.client(
        "s3", endpoint_url=ENDPOINT, region_name="us-east-1", aws_access_key_id=access_key,
        aws_secret_access_key=secret_key, config=Config(retries={"max_attempts": 1}, **config))


def refused(code, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except ClientError as e:
        assert e.response["Error"]["Code"] == code, e
        return
    raise AssertionError(f"expected {code}")


def fetch(url, **kwargs):
    with urllib.request.urlopen(urllib.request.Request(url, **kwargs)) as answer:
        return answer.read()


def fetch_refused(status, url, **kwargs):
    try:
        fetch(url, **kwargs)
    except urllib.error.HTTPError as e:
        assert e.code == status, e
        return
    raise AssertionError(f"expected status {status}")


s3 = client(signature_version="s3v4")

# buckets
s3.create_bucket(Bucket="python")
refused("BucketAlreadyOwnedByYou", s3.create_bucket, Bucket="python")
refused("404", s3.head_bucket, Bucket="nothing-here")
refused("NoSuchBucket", s3.list_objects_v2, Bucket="nothing-here")
refused("NoSuchBucket", s3.put_object, Bucket="nothing-here", Key="x", Body=b"")
assert [b["Name"] for b in s3.list_buckets()["Buckets"]] == ["python"]

# objects
body = os.urandom(100_000)
answer = s3.put_object(Bucket="python", Key="ключ/a b+c", Body=body, ContentType="text/x", Metadata={"color": "red"})
assert answer["ETag"] == '"%s"' % hashlib.md5(body).hexdigest()
answer = s3.get_object(Bucket="python", Key="ключ/a b+c")
assert answer["Body"].read() == body and answer["ContentType"] == "text/x" and answer["Metadata"] == {"color": "red"}
assert s3.get_object(Bucket="python", Key="ключ/a b+c", Range="bytes=5-9")["Body"].read() == body[5:10]
refused("NoSuchKey", s3.get_object, Bucket="python", Key="none")
refused("404", s3.head_object, Bucket="python", Key="none")
if "IfNoneMatch" in s3.meta.service_model.operation_model("PutObject").input_shape.members:  # since 2024
    refused("PreconditionFailed", s3.put_object, Bucket="python", Key="ключ/a b+c", Body=b"", IfNoneMatch="*")
refused("304", s3.get_object, Bucket="python", Key="ключ/a b+c", IfNoneMatch=answer["ETag"])
refused("BucketNotEmpty", s3.delete_bucket, Bucket="python")
for algorithm in ("CRC32", "SHA1", "SHA256"):
    s3.put_object(Bucket="python", Key="sum", Body=io.BytesIO(body), ChecksumAlgorithm=algorithm)
    answer = s3.get_object(Bucket="python", Key="sum", ChecksumMode="ENABLED")
    assert answer["Body"].read() == body and answer["Checksum" + algorithm], answer
refused("BadDigest", s3.put_object, Bucket="python", Key="sum", Body=b"abc", ChecksumCRC32="AAAAAA==")
refused("BadDigest", s3.put_object, Bucket="python", Key="sum", Body=b"abc", ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg==")

# multipart, by hand and by the transfer manager, which also copies and fetches in parts
big = os.urandom(20 << 20)
transfer = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
s3.upload_fileobj(io.BytesIO(big), "python", "big", Config=transfer)
assert s3.head_object(Bucket="python", Key="big")["ETag"].endswith('-4"')
s3.copy({"Bucket": "python", "Key": "big"}, "python", "big copy", Config=transfer)
for key in ("big", "big copy"):
    out = io.BytesIO()
    s3.download_fileobj("python", key, out, Config=transfer)
    assert out.getvalue() == big, key
assert s3.get_object(Bucket="python", Key="big", PartNumber=2)["Body"].read() == big[5 << 20:10 << 20]
assert "Uploads" not in s3.list_multipart_uploads(Bucket="python")
upload = s3.create_multipart_upload(Bucket="python", Key="m")["UploadId"]
tags = [s3.upload_part(Bucket="python", Key="m", UploadId=upload, PartNumber=n, Body=big[:n])["ETag"] for n in (1, 2, 3)]
listed = [p for page in s3.get_paginator("list_parts").paginate(Bucket="python", Key="m", UploadId=upload, PaginationConfig={"PageSize": 2}) for p in page["Parts"]]
assert [(p["PartNumber"], p["ETag"], p["Size"]) for p in listed] == [(n, tags[n - 1], n) for n in (1, 2, 3)], listed
assert [u["UploadId"] for u in s3.list_multipart_uploads(Bucket="python")["Uploads"]] == [upload]
refused("InvalidPart", s3.complete_multipart_upload, Bucket="python", Key="m", UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tags[1]}]})
s3.abort_multipart_upload(Bucket="python", Key="m", UploadId=upload)
refused("NoSuchUpload", s3.list_parts, Bucket="python", Key="m", UploadId=upload)

# lists
for n in range(25):
    s3.put_object(Bucket="python", Key=f"list/{n:02}/x", Body=b"")
pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket="python", Prefix="list/", Delimiter="/", PaginationConfig={"PageSize": 10}))
assert [p["Prefix"] for page in pages for p in page["CommonPrefixes"]] == [f"list/{n:02}/" for n in range(25)]
assert [page["KeyCount"] for page in pages] == [10, 10, 5]
v1 = [o["Key"] for page in s3.get_paginator("list_objects").paginate(Bucket="python", Prefix="list/", PaginationConfig={"PageSize": 10}) for o in page["Contents"]]
assert v1 == [f"list/{n:02}/x" for n in range(25)]
assert s3.list_objects_v2(Bucket="python", StartAfter="list/23/x", Prefix="list/")["Contents"][0]["Key"] == "list/24/x"
assert s3.list_objects_v2(Bucket="python", Prefix="none").get("Contents") is None

# what tools ask of buckets and objects in passing
assert s3.get_bucket_location(Bucket="python")["LocationConstraint"] is None
assert "Status" not in s3.get_bucket_versioning(Bucket="python")
s3.get_bucket_acl(Bucket="python")
s3.put_object_tagging(Bucket="python", Key="big", Tagging={"TagSet": [{"Key": "k", "Value": "v"}]})
assert s3.get_object_tagging(Bucket="python", Key="big")["TagSet"] == [{"Key": "k", "Value": "v"}]
assert s3.get_object(Bucket="python", Key="big")["Body"].read() == big

# presigned URLs: by version 2, unless botocore is told otherwise
for signer in (s3, client(), client(signature_version="s3"), client(signature_version="s3v4", s3={"addressing_style": "path"})):
    pre = {"Bucket": "python", "Key": "pre signed/é"}
    url = signer.generate_presigned_url("put_object", Params={**pre, "ContentType": "text/x", "Metadata": {"color": "blue"}}, ExpiresIn=60)
    fetch(url, data=b"by url", method="PUT", headers={"Content-Type": "text/x", "x-amz-meta-color": "blue"})
    fetch_refused(403, url, data=b"by url", method="PUT", headers={"Content-Type": "text/z", "x-amz-meta-color": "blue"})
    answer = s3.head_object(**pre)
    assert answer["ContentType"] == "text/x" and answer["Metadata"] == {"color": "blue"}, answer
    url = signer.generate_presigned_url("get_object", Params={**pre, "ResponseContentDisposition": 'attachment; filename="é & b.txt"'}, ExpiresIn=60)
    assert fetch(url) == b"by url"
    fetch_refused(403, url.replace("Expires=", "Expires=1"))
    fetch_refused(403, url.replace("pre%20signed", "presigned"))
    fetch_refused(403, url, method="DELETE")
    fetch_refused(403, url, headers={"x-amz-copy-source": "python/big"})
    upload = s3.create_multipart_upload(**pre)["UploadId"]
    url = signer.generate_presigned_url("upload_part", Params={**pre, "UploadId": upload, "PartNumber": 1}, ExpiresIn=60)
    fetch(url, data=b"by part", method="PUT", headers={"Content-Type": ""})
    parts = [{"PartNumber": p["PartNumber"], "ETag": p["ETag"]} for p in s3.list_parts(**pre, UploadId=upload)["Parts"]]
    s3.complete_multipart_upload(**pre, UploadId=upload, MultipartUpload={"Parts": parts})
    assert fetch(signer.generate_presigned_url("get_object", Params=pre)) == b"by part"
    assert fetch(signer.generate_presigned_url("head_object", Params=pre), method="HEAD") == b""
    fetch(signer.generate_presigned_url("delete_object", Params=pre), method="DELETE")
    refused("404", s3.head_object, **pre)
url = s3.generate_presigned_url("get_object", Params={"Bucket": "python", "Key": "big"}, ExpiresIn=1)
time.sleep(2.1)  # the only way past an expiry
fetch_refused(403, url)

# by version 2; botocore of 2023 signs no operation whose address has a fixed parameter rightly
old = client(signature_version="s3", s3={"addressing_style": "path"})
assert [b["Name"] for b in old.list_buckets()["Buckets"]] == ["python"]
old.create_bucket(Bucket="older")
old.put_object(Bucket="older", Key="a b/é+%x", Body=b"old", Metadata={"spaces": "two  or   three"})
old.copy_object(Bucket="older", Key="copy", CopySource={"Bucket": "older", "Key": "a b/é+%x"})
answer = old.get_object(Bucket="older", Key="copy")
assert answer["Body"].read() == b"old" and answer["Metadata"] == {"spaces": "two  or   three"}, answer
pages = old.get_paginator("list_objects").paginate(Bucket="older", PaginationConfig={"PageSize": 1})
assert [o["Key"] for page in pages for o in page["Contents"]] == ["a b/é+%x", "copy"]
for key in ("a b/é+%x", "copy"):
    old.delete_object(Bucket="older", Key=key)
old.delete_bucket(Bucket="older")
refused("404", s3.head_bucket, Bucket="older")
assert fetch(client().generate_presigned_url("head_bucket", Params={"Bucket": "python"}), method="HEAD") == b""

# without the keys
refused("InvalidAccessKeyId", client("someone").list_buckets)
refused("SignatureDoesNotMatch", client(secret_key="wrong").list_buckets)
refused("SignatureDoesNotMatch", client(secret_key="wrong").put_object, Bucket="python", Key="x", Body=big)
fetch_refused(403, ENDPOINT + "/python/big")

# cleaning up, by hundreds
keys = [o["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket="python") for o in page["Contents"]]
deleted = s3.delete_objects(Bucket="python", Delete={"Objects": [{"Key": k} for k in keys + ["was never there"]]})
assert len(deleted["Deleted"]) == len(keys) + 1 and "Errors" not in deleted
s3.delete_bucket(Bucket="python")
assert s3.list_buckets()["Buckets"] == []
print("ok")

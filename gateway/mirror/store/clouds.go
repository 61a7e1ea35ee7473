package store

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"cloud.google.com/go/storage"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	azureblobs "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/azureblob" // azblob://
	_ "gocloud.dev/blob/gcsblob"   // gs://
	_ "gocloud.dev/blob/s3blob"    // s3://
	"gocloud.dev/gcerrors"
)

// schemes are the addresses that Open knows.
var schemes = []string{"azblob", "gs", "s3"}

// isMissing tells a missing object from a missing bucket, a refusal and other
// trouble, all of which the portable error codes may call not found.
func isMissing(err error) bool {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode() == "NoSuchKey" || api.ErrorCode() == "NotFound"
	}
	return errors.Is(err, storage.ErrObjectNotExist) || bloberror.HasCode(err, bloberror.BlobNotFound)
}

// isRefused tells whether a conditional write was refused, be it because its
// condition does not hold or because another write was under way.
func isRefused(err error) bool {
	if gcerrors.Code(err) == gcerrors.FailedPrecondition {
		return true
	}
	if response, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		return response.HTTPStatusCode() == http.StatusConflict
	}
	// Azure drops the blocks of one upload when another one is committed.
	return bloberror.HasCode(err, bloberror.BlobAlreadyExists, bloberror.ConditionNotMet, bloberror.InvalidBlockList)
}

// ifUnchanged makes a write hold only while the object is the one that attrs describe.
func ifUnchanged(attrs *blob.Attributes) func(as func(any) bool) error {
	return func(as func(any) bool) error {
		var toS3 *transfermanager.UploadObjectInput
		var toGCS **storage.ObjectHandle
		var toAzure *azblob.UploadStreamOptions
		var object storage.ObjectAttrs
		switch etag := azcore.ETag(attrs.ETag); {
		case as(&toS3):
			toS3.IfMatch = aws.String(attrs.ETag)
		case attrs.As(&object) && as(&toGCS):
			*toGCS = (*toGCS).If(storage.Conditions{GenerationMatch: object.Generation})
		case as(&toAzure):
			toAzure.AccessConditions = &azblob.AccessConditions{ModifiedAccessConditions: &azureblobs.ModifiedAccessConditions{IfMatch: &etag}}
		default:
			return errors.New("the backend knows no condition on what is overwritten")
		}
		return nil
	}
}

// abortUploads ends uploads in parts that began before then below a prefix.
// S3 keeps their parts for ever; the other two drop them by themselves.
func abortUploads(ctx context.Context, b *blob.Bucket, bucket, prefix string, then time.Time) error {
	var client *s3.Client
	if !b.As(&client) {
		return nil
	}
	pages := s3.NewListMultipartUploadsPaginator(client, &s3.ListMultipartUploadsInput{Bucket: &bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("listing unfinished uploads: %w", err)
		}
		for _, u := range page.Uploads {
			if !strings.HasPrefix(aws.ToString(u.Key), prefix) || u.Initiated == nil || !u.Initiated.Before(then) {
				continue
			}
			_, err := client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &bucket, Key: u.Key, UploadId: u.UploadId})
			if api, ok := errors.AsType[smithy.APIError](err); err != nil && (!ok || api.ErrorCode() != "NoSuchUpload") {
				return fmt.Errorf("ending the unfinished upload of %s: %w", aws.ToString(u.Key), err)
			}
		}
	}
	return nil
}

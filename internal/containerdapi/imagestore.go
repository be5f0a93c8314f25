package containerdapi

import (
	"context"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// ImageStore is containerd's store of images, by its API. The one of containerd's own client would need all that the
// client needs.
type ImageStore struct{ Client imagesapi.ImagesClient }

var _ images.Store = ImageStore{}

// Get implements images.Store.
func (s ImageStore) Get(ctx context.Context, name string) (images.Image, error) {
	r, err := s.Client.Get(ctx, &imagesapi.GetImageRequest{Name: name})
	return ImageFromAPI(r.GetImage()), errgrpc.ToNative(err)
}

// List implements images.Store.
func (s ImageStore) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	r, err := s.Client.List(ctx, &imagesapi.ListImagesRequest{Filters: filters})
	list := make([]images.Image, 0, len(r.GetImages()))
	for _, image := range r.GetImages() {
		list = append(list, ImageFromAPI(image))
	}
	return list, errgrpc.ToNative(err)
}

// Create implements images.Store.
func (s ImageStore) Create(ctx context.Context, image images.Image) (images.Image, error) {
	r, err := s.Client.Create(ctx, &imagesapi.CreateImageRequest{Image: ImageToAPI(image)})
	return ImageFromAPI(r.GetImage()), errgrpc.ToNative(err)
}

// Update implements images.Store.
func (s ImageStore) Update(ctx context.Context, image images.Image, fieldpaths ...string) (images.Image, error) {
	request := &imagesapi.UpdateImageRequest{Image: ImageToAPI(image)}
	if len(fieldpaths) > 0 {
		request.UpdateMask = &fieldmaskpb.FieldMask{Paths: fieldpaths}
	}
	r, err := s.Client.Update(ctx, request)
	return ImageFromAPI(r.GetImage()), errgrpc.ToNative(err)
}

// Delete implements images.Store.
func (s ImageStore) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	var o images.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	request := &imagesapi.DeleteImageRequest{Name: name, Sync: o.Synchronous}
	if o.Target != nil {
		request.Target = descriptorToAPI(*o.Target)
	}
	_, err := s.Client.Delete(ctx, request)
	return errgrpc.ToNative(err)
}

// ImageToAPI is an image as requests have it.
func ImageToAPI(image images.Image) *imagesapi.Image {
	return &imagesapi.Image{Name: image.Name, Labels: image.Labels, Target: descriptorToAPI(image.Target)}
}

// ImageFromAPI is the image in an answer.
func ImageFromAPI(image *imagesapi.Image) images.Image {
	target := image.GetTarget()
	return images.Image{
		Name: image.GetName(), Labels: image.GetLabels(),
		Target: ocispec.Descriptor{
			MediaType: target.GetMediaType(), Digest: digest.Digest(target.GetDigest()),
			Size: target.GetSize(), Annotations: target.GetAnnotations(),
		},
		CreatedAt: image.GetCreatedAt().AsTime(), UpdatedAt: image.GetUpdatedAt().AsTime(),
	}
}

func descriptorToAPI(d ocispec.Descriptor) *types.Descriptor {
	return &types.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size, Annotations: d.Annotations}
}

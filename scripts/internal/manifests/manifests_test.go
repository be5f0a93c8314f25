package manifests

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/yaml"
)

const directory = "../../../packaging/kubernetes"

// decode reads the objects of a manifest. A key that the API does not know, or that comes twice, is an error.
func decode(text []byte) (objects []runtime.Object, err error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	if err := appsv1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	documents := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text)))
	defer documents.Close()
	for {
		document := make([]byte, 1<<20)
		n, err := documents.Read(document)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		object, _, err := decoder.Decode(document[:n], nil, nil)
		if err != nil {
			return nil, err
		}
		objects = append(objects, object)
	}
}

// TestManifests: each manifest has objects of the API alone, in its own namespace, that refer to each other by their names. No
// object gives rights in the cluster, and no container is privileged.
func TestManifests(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(directory, "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		objects, err := decode(text)
		require.NoError(t, err, file)
		var namespaces, configMaps []string
		daemonSets := 0
		for _, object := range objects {
			meta, ok := object.(metav1.Object)
			require.True(t, ok)
			assert.Empty(t, validation.IsDNS1123Subdomain(meta.GetName()))
			for key, value := range meta.GetLabels() {
				assert.Empty(t, validation.IsQualifiedName(key))
				assert.Empty(t, validation.IsValidLabelValue(value))
			}
			switch object := object.(type) {
			case *corev1.Namespace:
				namespaces = append(namespaces, object.Name)
			case *corev1.ConfigMap:
				assert.Contains(t, namespaces, object.Namespace)
				assert.Contains(t, object.Data, "config.toml")
				configMaps = append(configMaps, object.Name)
			case *appsv1.DaemonSet:
				assert.Contains(t, namespaces, object.Namespace)
				checkDaemonSet(t, object, configMaps)
				daemonSets++
			default:
				t.Errorf("%s has a %T", file, object)
			}
		}
		assert.Equal(t, 1, daemonSets, file)
	}
}

func checkDaemonSet(t *testing.T, d *appsv1.DaemonSet, configMaps []string) {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	require.NoError(t, err)
	pod := d.Spec.Template.Spec
	assert.True(t, selector.Matches(labels.Set(d.Spec.Template.Labels)))
	assert.Equal(t, "true", pod.NodeSelector["cowshed.dev/install"])
	require.NotNil(t, pod.AutomountServiceAccountToken)
	assert.False(t, *pod.AutomountServiceAccountToken)
	assert.False(t, pod.HostNetwork || pod.HostPID || pod.HostIPC)
	var volumes []string
	for _, v := range pod.Volumes {
		volumes = append(volumes, v.Name)
		if v.ConfigMap != nil {
			assert.Contains(t, configMaps, v.ConfigMap.Name)
		}
	}
	require.Len(t, pod.InitContainers, 1)
	assert.Equal(t, []string{"/opt/cowshed/node.sh", "install", "/host"}, pod.InitContainers[0].Command)
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, m := range c.VolumeMounts {
			assert.Contains(t, volumes, m.Name)
		}
		security := c.SecurityContext
		require.NotNil(t, security, c.Name)
		assert.Nil(t, security.Privileged)
		assert.Equal(t, []corev1.Capability{"ALL"}, security.Capabilities.Drop)
		assert.Equal(t, d.Spec.Template.Spec.InitContainers[0].Image, c.Image)
		assert.NotEmpty(t, c.Resources.Limits)
	}
	for _, c := range pod.Containers {
		assert.True(t, *c.SecurityContext.RunAsNonRoot)
		assert.Empty(t, c.SecurityContext.Capabilities.Add)
		assert.Empty(t, c.VolumeMounts, "it has nothing of the node")
	}
}

// TestDecodeIsStrict: faults that the API server ignores or refuses are found.
func TestDecodeIsStrict(t *testing.T) {
	const begin = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: a}\n"
	for name, text := range map[string]string{
		"unknown key":  begin + "spec: {template: {spec: {hostPids: true}}}\n",
		"wrong type":   begin + "spec: {template: {spec: {hostPID: 'yes'}}}\n",
		"twice":        begin + "spec: {}\nspec: {}\n",
		"unknown kind": "apiVersion: apps/v1\nkind: DaemonSets\n",
	} {
		_, err := decode([]byte(text))
		assert.Error(t, err, name)
	}
	objects, err := decode([]byte(begin))
	require.NoError(t, err)
	assert.Len(t, objects, 1)
}

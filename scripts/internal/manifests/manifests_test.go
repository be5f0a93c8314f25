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
	rbacv1 "k8s.io/api/rbac/v1"
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
	if err := rbacv1.AddToScheme(scheme); err != nil {
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

// manifest reads the objects of a file of packaging/kubernetes.
func manifest(t *testing.T, file string) []runtime.Object {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(directory, file))
	require.NoError(t, err)
	objects, err := decode(text)
	require.NoError(t, err, file)
	return objects
}

// TestManifests: each manifest has objects of the API alone, in its own namespace, that refer to each other by their names. Only
// kubelet-pods.yaml gives rights in the cluster, and no container is privileged.
func TestManifests(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(directory, "*.yaml"))
	require.NoError(t, err)
	require.Len(t, files, 2)
	for _, file := range files {
		file = filepath.Base(file)
		if file == kubeletPods {
			continue // TestKubeletPods
		}
		var namespaces, configMaps []string
		daemonSets := 0
		for _, object := range manifest(t, file) {
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

const kubeletPods = "kubelet-pods.yaml"

// TestKubeletPods: the manifest makes a token that has the right to read pods of kubelets and no other. The DaemonSet mounts its
// Secret if it is there.
func TestKubeletPods(t *testing.T) {
	const name, namespace = "cowshed-kubelet", "cowshed"
	kinds := make(map[string]bool)
	for _, object := range manifest(t, kubeletPods) {
		meta, ok := object.(metav1.Object)
		require.True(t, ok)
		assert.Equal(t, name, meta.GetName())
		kinds[object.GetObjectKind().GroupVersionKind().Kind] = true
		switch object := object.(type) {
		case *corev1.ServiceAccount:
			assert.Equal(t, namespace, object.Namespace)
		case *rbacv1.ClusterRole:
			assert.Equal(t, []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes/pods"}, Verbs: []string{"get"}}}, object.Rules)
		case *rbacv1.ClusterRoleBinding:
			assert.Equal(t, rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}, object.RoleRef)
			assert.Equal(t, []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: name, Namespace: namespace}}, object.Subjects)
		case *corev1.Secret:
			assert.Equal(t, namespace, object.Namespace)
			assert.Equal(t, corev1.SecretTypeServiceAccountToken, object.Type)
			assert.Equal(t, map[string]string{corev1.ServiceAccountNameKey: name}, object.Annotations)
		}
	}
	assert.Equal(t, map[string]bool{"ServiceAccount": true, "ClusterRole": true, "ClusterRoleBinding": true, "Secret": true}, kinds)
	mounted := false
	for _, object := range manifest(t, "cowshed.yaml") {
		if d, ok := object.(*appsv1.DaemonSet); ok {
			for _, v := range d.Spec.Template.Spec.Volumes {
				if v.Secret != nil {
					mounted = v.Secret.SecretName == name && *v.Secret.Optional
				}
			}
		}
	}
	assert.True(t, mounted)
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

def test_ray(tmp_path, s3):
    import ray, pyarrow as pa
    from ray.data import ActorPoolStrategy
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100<<20)
    class A:
        def __call__(self, b):
            import os
            return b.append_column("e", pa.array([os.environ["AWS_ENDPOINT_URL_S3"]]*len(b)))
    ds = ray.data.from_arrow(pa.table({"a": list(range(10))})).repartition(2).map_batches(A, batch_format="pyarrow", compute=ActorPoolStrategy(size=1), zero_copy_batch=True)
    assert ds.to_pandas()["e"][0].startswith("http://127")
    ray.shutdown()
def test_other(): pass
